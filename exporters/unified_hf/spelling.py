"""Spelling: packed tensors under the dialect's names, dtypes and layouts, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.formats.packing import pack, unpack
from octavo.core.formats.scales import SCALE_DTYPES, decode_e8m0
from octavo.core.packed import PackedTensor

# Dtype in which whole-byte codes are stored; narrower codes are stored as uint8.
_WHOLE_BYTES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8}
CODE_DTYPES = {*_WHOLE_BYTES.values(), torch.uint8}


def spell(packed: PackedTensor, peer: bool = True) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a packed weight: `weight`, `weight_scale` and, with two levels, `weight_scale_2`.

    INT4 is packed along the output dim: byte [j, i] holds rows 2j (low nibble) and 2j + 1. Square blocks have
    scales of shape [⌈o/b⌉, 1, ⌈i/b⌉, 1]; where the weight is a single block the peer's have shape [], which engines
    refuse (`peer` False: four dims there too).
    """
    payload, scale = packed.payload, packed.scale
    if packed.spec.element == "int4":
        rows = unpack(payload, 4, packed.shape[-1]).transpose(-1, -2)
        payload = pack(rows, 4).transpose(-1, -2)
    elif packed.spec.element in _WHOLE_BYTES:
        payload = payload.view(_WHOLE_BYTES[packed.spec.element])
    if is_square(packed.spec):
        scale = scale.reshape(()) if peer and scale.numel() == 1 else scale[:, None, :, None]
    tensors = {"weight": payload.contiguous(), "weight_scale": scale.contiguous()}
    return tensors if packed.global_scale is None else {**tensors, "weight_scale_2": packed.global_scale}


def unspell(tensors: Mapping[str, Tensor], spec: QuantSpec, dtype: torch.dtype, where: str) -> PackedTensor:
    """Undo `spell`. A scale of one number may have any number of dims.

    Args:
        tensors: {suffix: tensor}.
        spec: Format of the stored weight.
        dtype: Dtype of the weight it stands for.
        where: File and module, for messages.

    Raises:
        CheckpointError: a tensor is missing or has no place in the format, its dtype or shape is another one, or
            a scale is NaN, infinite, or negative (but for signed integers).
    """
    needed = ["weight", "weight_scale", *(["weight_scale_2"] if spec.global_max is not None else [])]
    for suffix in needed:
        if suffix not in tensors:
            raise CheckpointError(f"{where}: {suffix} is missing, which {spec} needs")
        _check_values(suffix, tensors[suffix], spec, where)
    if len(tensors) > len(needed):
        raise CheckpointError(f"{where}: {spec} has {', '.join(needed)}; found {', '.join(tensors)}")
    payload, shape = tensors["weight"], weight_shape(tensors["weight"], spec, where)
    if spec.element == "int4":
        payload = pack(unpack(payload.transpose(0, 1), 4, shape[0]).transpose(0, 1).contiguous(), 4)
    blocks = spec.granularity.scale_shape(shape)
    stored = (blocks[0], 1, blocks[1], 1) if is_square(spec) else blocks
    of = f"of a tensor {shape} packed as {spec}"
    scale = _reshaped(tensors["weight_scale"], stored, blocks, f"{where}: weight_scale {of}")
    global_scale = tensors.get("weight_scale_2")
    if global_scale is not None:
        global_scale = _reshaped(global_scale, (), (), f"{where}: weight_scale_2 {of}")
    return PackedTensor(payload.view(torch.uint8), scale, global_scale, spec, shape, dtype)


def weight_shape(codes: Tensor, spec: QuantSpec, where: str) -> tuple[int, int]:
    """Return the shape [out, in] of the weight that stored codes stand for.

    Raises:
        CheckpointError: the codes are no matrix.
    """
    if codes.dim() != 2:
        raise CheckpointError(f"{where} must be a matrix, found shape {tuple(codes.shape)}")
    rows, columns = codes.shape
    return (2 * rows, columns) if spec.element == "int4" else (rows, columns * 8 // spec.element_type.bits)


def is_square(spec: QuantSpec) -> bool:
    """Whether a format has blocks over rows and columns."""
    return isinstance(spec.granularity, PerBlock) and len(spec.granularity.sizes) == 2


def _reshaped(scale: Tensor, stored: Sequence[int], shape: Sequence[int], what: str) -> Tensor:
    if scale.shape != torch.Size(stored) and not scale.numel() == math.prod(stored) == 1:
        raise CheckpointError(f"{what} has shape {tuple(stored)}, found {tuple(scale.shape)}")
    return scale.reshape(shape)


def _check_values(suffix: str, tensor: Tensor, spec: QuantSpec, where: str) -> None:
    expected = {
        "weight": _WHOLE_BYTES.get(spec.element, torch.uint8),
        "weight_scale": SCALE_DTYPES[spec.scale],
        "weight_scale_2": torch.float32,
    }[suffix]
    if tensor.dtype != expected:
        raise CheckpointError(f"{where}: {suffix} has dtype {tensor.dtype}, expected {expected} for {spec}")
    if suffix == "weight":
        return
    scales = decode_e8m0(tensor) if tensor.dtype == torch.uint8 else tensor.float()
    if not scales.isfinite().all():
        raise CheckpointError(f"{where}: {suffix} holds NaN or infinite scales")
    # Of integers the longer side of the range may lie on the positive values: their scales then are negative.
    has_longer_side = suffix == "weight_scale" and -spec.element_type.min > spec.element_type.max
    if not (has_longer_side and spec.scale == "float32") and (scales < 0).any():
        raise CheckpointError(f"{where}: {suffix} holds negative scales")
