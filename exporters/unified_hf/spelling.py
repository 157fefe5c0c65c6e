"""Spelling: packed tensors under the dialect's names, dtypes and layouts, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.formats.packing import pack, unpack
from octavo.core.packed import PackedTensor

# Dtype in which whole-byte codes are stored; narrower codes are stored as uint8.
_CODE_DTYPES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8}


def spell(packed: PackedTensor) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a packed weight: `weight`, `weight_scale` and, with two levels, `weight_scale_2`.

    INT4 is packed along the output dim: byte [j, i] holds rows 2j (low nibble) and 2j + 1. Square blocks have
    scales of shape [⌈o/b⌉, 1, ⌈i/b⌉, 1], or [] where the weight is a single block.
    """
    payload, scale = packed.payload, packed.scale
    if packed.spec.element == "int4":
        rows = unpack(payload, 4, packed.shape[-1]).transpose(-1, -2)
        payload = pack(rows, 4).transpose(-1, -2)
    elif packed.spec.element in _CODE_DTYPES:
        payload = payload.view(_CODE_DTYPES[packed.spec.element])
    if is_square(packed.spec):
        scale = scale.reshape(()) if scale.numel() == 1 else scale[:, None, :, None]
    tensors = {"weight": payload.contiguous(), "weight_scale": scale.contiguous()}
    return tensors if packed.global_scale is None else {**tensors, "weight_scale_2": packed.global_scale}


def unspell(tensors: Mapping[str, Tensor], spec: QuantSpec, dtype: torch.dtype, where: str) -> PackedTensor:
    """Undo `spell`.

    Args:
        tensors: {suffix: tensor}.
        spec: Format of the stored weight.
        dtype: Dtype of the weight it stands for.
        where: File and module, for messages.

    Raises:
        CheckpointError: a tensor is missing, has another dtype or shape, or a scale is not a finite number.
    """
    needed = ["weight", "weight_scale", *(["weight_scale_2"] if spec.global_max is not None else [])]
    for suffix in needed:
        if suffix not in tensors:
            raise CheckpointError(f"{where}: {suffix} is missing, which {spec} needs")
        _check_dtype(suffix, tensors[suffix], spec, where)
    payload, scale, global_scale = tensors["weight"], tensors["weight_scale"], tensors.get("weight_scale_2")
    if spec.element == "int4":
        shape = (2 * payload.shape[0], payload.shape[1])
        payload = pack(unpack(payload.transpose(0, 1), 4, shape[0]).transpose(0, 1).contiguous(), 4)
    else:
        payload = payload.view(torch.uint8)
        shape = (payload.shape[0], payload.shape[1] * 8 // spec.element_type.bits)
    if is_square(spec):
        scale = scale.reshape(spec.granularity.scale_shape(shape))
    packed = PackedTensor(payload, scale, global_scale, spec, shape, dtype)
    try:
        packed.check()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return packed


def is_square(spec: QuantSpec) -> bool:
    """Whether a format has blocks over rows and columns."""
    return isinstance(spec.granularity, PerBlock) and len(spec.granularity.sizes) == 2


def _check_dtype(suffix: str, tensor: Tensor, spec: QuantSpec, where: str) -> None:
    scale_dtype = {"float32": torch.float32, "e4m3": torch.float8_e4m3fn, "e8m0": torch.uint8}[spec.scale]
    expected = {
        "weight": _CODE_DTYPES.get(spec.element, torch.uint8),
        "weight_scale": scale_dtype,
        "weight_scale_2": torch.float32,
    }[suffix]
    if tensor.dtype != expected:
        raise CheckpointError(f"{where}: {suffix} has dtype {tensor.dtype}, expected {expected} for {spec}")
    if suffix != "weight" and tensor.dtype != torch.uint8 and not tensor.float().isfinite().all():
        raise CheckpointError(f"{where}: {suffix} holds NaN or infinite scales")
