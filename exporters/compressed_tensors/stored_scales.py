"""Scales as checkpoints hold them: their dtypes and shapes, and that they are numbers to multiply with."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import SCALE_DTYPES, decode_e8m0


def checked_scale(scale: Tensor, spec: QuantSpec, shape: tuple[int, int], where: str) -> Tensor:
    """Return the first-level scales of a weight as `PackedTensor` holds them.

    Args:
        scale: As stored.
        spec: Format of the weight.
        shape: Its shape.
        where: File and module, for messages.

    Raises:
        CheckpointError: dtype or shape do not fit, or a scale is none that a weight can have.
    """
    fits = scale.is_floating_point() if spec.scale == "float32" else scale.dtype == SCALE_DTYPES[spec.scale]
    if not fits:
        raise CheckpointError(f"{where}: weight_scale has dtype {scale.dtype}, which is none for {spec}")
    blocks = spec.granularity.scale_shape(shape)
    stored = (*blocks, *([1] if len(blocks) < 2 else []))
    if tuple(scale.shape) != stored and not scale.numel() == 1 == len(stored):
        raise CheckpointError(f"{where}: weight_scale has shape {stored}, found {tuple(scale.shape)}")
    values = decode_e8m0(scale) if scale.dtype == torch.uint8 else scale.float()
    wrong = ~values.isfinite() | _is_wrong(values, spec)
    if wrong.any():
        kind = "numbers other than 0" if spec.may_be_negative else "positive numbers"
        raise CheckpointError(f"{where}: weight_scale must hold {kind}, found {values[wrong][0]}")
    return (values if spec.scale == "float32" else scale).reshape(blocks)


def checked_divisor(stored: Tensor, where: str) -> Tensor:
    """Return the divisor of a weight's block scales, fp32 [].

    Raises:
        CheckpointError: it is not one positive, finite number.
    """
    if stored.numel() != 1 or not stored.is_floating_point() or not 0 < float(stored) < torch.inf:
        raise CheckpointError(f"{where}: weight_global_scale must be one positive number, found {stored}")
    return stored.float().reshape(())


def _is_wrong(values: Tensor, spec: QuantSpec) -> Tensor:
    """Return which scales no weight has: 0, but where a block's may vanish beside the tensor's, and negative ones."""
    if spec.scale == "e4m3":
        return values < 0
    return values == 0 if spec.may_be_negative else values <= 0
