"""Spelling: packed weights under the dialect's names, dtypes and layouts, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.formats.scales import decode_e8m0
from octavo.core.packed import PackedTensor

_CODES = {"int-quantized": torch.int8, "float-quantized": torch.float8_e4m3fn}
# Integers are stored with an offset of half their range instead of in two's complement: the top bit is turned over.
_TOP_BITS = {4: 0x88, 8: 0x80}
_WORD = 4  # bytes of an int32, to which packed rows are filled up


def spell(packed: PackedTensor, format_name: str) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a packed weight [out, in].

    `weight` holds whole-byte codes; `weight_packed` narrower ones, two FP4 codes to a byte or integers of a row as
    one little-endian bit string of int32 words. Scales are [1], [out, 1] or [out, in / group], in the weight's
    dtype or as E8M0.
    """
    scale = packed.scale if packed.scale.dtype == torch.uint8 else packed.scale.to(packed.dtype)
    scale = scale.reshape(1) if scale.dim() == 0 else scale.reshape(packed.shape[0], -1)
    tensors = {"weight_scale": scale.contiguous()}
    if format_name in _CODES:
        return {"weight": packed.payload.view(_CODES[format_name]), **tensors}
    if format_name == "pack-quantized":
        codes = packed.payload ^ _TOP_BITS[packed.spec.element_type.bits]
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % _WORD)).contiguous()
        shape = torch.tensor(packed.shape, dtype=torch.int64)
        return {"weight_packed": codes.view(torch.int32), **tensors, "weight_shape": shape}
    return {"weight_packed": packed.payload, **tensors}


def unspell(
    tensors: Mapping[str, Tensor], format_name: str, spec: QuantSpec, dtype: torch.dtype, where: str
) -> PackedTensor:
    """Undo `spell`.

    Args:
        tensors: {suffix: tensor}.
        format_name: The dialect's name of the format.
        spec: Format of the stored weight.
        dtype: Dtype of the weight it stands for.
        where: File and module, for messages.

    Raises:
        CheckpointError: a tensor is missing, its dtype or shape does not fit, or a scale is no positive number.
    """
    suffix = "weight" if format_name in _CODES else "weight_packed"
    needed = [suffix, "weight_scale", *(["weight_shape"] if format_name == "pack-quantized" else [])]
    if set(needed) != tensors.keys():
        raise CheckpointError(f"{where}: {format_name} has {', '.join(needed)}; found {', '.join(tensors)}")
    codes, scale = tensors[suffix], tensors["weight_scale"]
    expected = {"pack-quantized": torch.int32, **_CODES}.get(format_name, torch.uint8)
    if codes.dtype != expected or codes.dim() != 2:
        raise CheckpointError(
            f"{where}: {suffix} must be a matrix of {expected}, found {codes.dtype} {tuple(codes.shape)}"
        )
    bits = spec.element_type.bits
    shape = (codes.shape[0], codes.shape[1] * codes.dtype.itemsize * 8 // bits)
    payload = codes.view(torch.uint8)
    if format_name == "pack-quantized":
        rows, columns = (int(length) for length in tensors["weight_shape"].flatten().tolist())
        if rows != shape[0] or not shape[1] - _WORD * 8 // bits < columns <= shape[1]:
            raise CheckpointError(
                f"{where}: weight_shape {[rows, columns]} does not fit {tuple(codes.shape)}"
            )
        shape = (rows, columns)
        payload = (payload ^ _TOP_BITS[bits])[:, : packed_length(columns, bits)].contiguous()
    return PackedTensor(payload, _scale(scale, spec, shape, where), None, spec, shape, dtype)


def _scale(scale: Tensor, spec: QuantSpec, shape: tuple[int, int], where: str) -> Tensor:
    is_e8m0 = scale.dtype == torch.uint8
    if is_e8m0 != (spec.scale == "e8m0") or not (is_e8m0 or scale.is_floating_point()):
        raise CheckpointError(f"{where}: weight_scale has dtype {scale.dtype}, which is none for {spec}")
    blocks = spec.granularity.scale_shape(shape)
    stored = (1,) if not blocks else (shape[0], 1 if len(blocks) == 1 else blocks[1])
    if tuple(scale.shape) != stored and not scale.numel() == 1 == len(stored):
        raise CheckpointError(f"{where}: weight_scale has shape {stored}, found {tuple(scale.shape)}")
    values = decode_e8m0(scale) if is_e8m0 else scale.float()
    wrong = ~values.isfinite() | (values == 0 if spec.may_be_negative else values <= 0)
    if wrong.any():
        kind = "numbers other than 0" if spec.may_be_negative else "positive numbers"
        raise CheckpointError(f"{where}: weight_scale must hold {kind}, found {values[wrong][0]}")
    return (scale if is_e8m0 else values).reshape(blocks)
