"""Spelling: packed weights under the dialect's names, dtypes and layouts, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.formats.packing import pack, packed_length, unpack
from octavo.core.formats.rounding import decode, encode
from octavo.core.formats.words import from_words, to_words
from octavo.core.model.exporter import LayerFormat
from octavo.core.packed import PackedAffine, PackedTensor
from octavo.exporters.compressed_tensors.divisors import divisor
from octavo.exporters.compressed_tensors.stored_scales import checked_divisor, checked_scale

# Dtype of codes that are stored one to an element; others are packed, two FP4 codes to a byte or integers in words.
_WHOLE = {
    "int-quantized": torch.int8,
    "float-quantized": torch.float8_e4m3fn,
    "naive-quantized": torch.float8_e4m3fn,
    "mxfp8-quantized": torch.float8_e4m3fn,
}
CODE_DTYPES = set(_WHOLE.values())
_WORDS = "pack-quantized"
_ZERO_POINT = "weight_zero_point"


def spell(packed: PackedTensor | PackedAffine, format_name: str) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a packed weight [out, in].

    `weight` holds whole-byte codes; `weight_packed` narrower ones, two FP4 codes to a byte or integers of a row as
    one little-endian bit string of int32 words. Scales are [1], [out, 1], [out, in / group] or one for each block of
    rows and columns, in the weight's dtype, as E4M3 beside a divisor `weight_global_scale` [1], or as E8M0. Zero
    points are packed as codes are, along the rows.
    """
    codes = packed.codes if isinstance(packed, PackedAffine) else packed
    tensors = {**_spelled_codes(codes, format_name), "weight_scale": _spelled_scale(codes)}
    if codes.global_scale is not None:
        tensors["weight_global_scale"] = divisor(codes.global_scale).reshape(1)
    if format_name == _WORDS:
        tensors["weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64)
    if isinstance(packed, PackedAffine):
        rows = packed.zero_point.reshape(codes.shape[0], -1).T
        bits = codes.spec.element_type.bits
        tensors[_ZERO_POINT] = to_words(pack(rows.contiguous(), bits)).T.contiguous()
    return tensors


def parts_of(format_name: str, layer: LayerFormat) -> list[str]:
    """Return the suffixes of the tensors that hold a weight of a layer of this format."""
    return [
        "weight" if format_name in _WHOLE else "weight_packed",
        "weight_scale",
        *(["weight_global_scale"] if layer.weight.global_max is not None else []),
        *(["weight_shape"] if format_name == _WORDS else []),
        *([_ZERO_POINT] if layer.zero_points else []),
    ]


def unspell(
    tensors: Mapping[str, Tensor], format_name: str, layer: LayerFormat, dtype: torch.dtype, where: str
) -> PackedTensor | PackedAffine:
    """Undo `spell`.

    Args:
        tensors: {suffix: tensor}.
        format_name: The dialect's name of the format.
        layer: Format of the layer.
        dtype: Dtype of the weight it stands for.
        where: File and module, for messages.

    Raises:
        CheckpointError: a tensor is missing, its dtype or shape does not fit, or a scale is no positive number.
    """
    needed, spec = parts_of(format_name, layer), layer.weight
    if set(needed) != tensors.keys():
        raise CheckpointError(f"{where}: {format_name} has {', '.join(needed)}; found {', '.join(tensors)}")
    payload, shape = _payload(tensors, format_name, spec, where)
    scale = checked_scale(tensors["weight_scale"], spec, shape, where)
    global_scale = None
    if spec.global_max is not None:
        global_scale = divisor(checked_divisor(tensors["weight_global_scale"], where))
    packed = PackedTensor(payload, scale, global_scale, spec, shape, dtype)
    return PackedAffine(packed, _zero_point(tensors, packed, where)) if layer.zero_points else packed


def _spelled_codes(packed: PackedTensor, format_name: str) -> dict[str, Tensor]:
    element = packed.spec.element_type
    if format_name in _WHOLE and element.bits < 8:
        codes = decode(unpack(packed.payload, element.bits, packed.shape[-1]), element)
        return {"weight": codes.to(_WHOLE[format_name])}
    if format_name in _WHOLE:
        return {"weight": packed.payload.view(_WHOLE[format_name])}
    if format_name == _WORDS:
        return {"weight_packed": to_words(_offset(packed.payload, packed.spec, packed.shape[-1]))}
    return {"weight_packed": packed.payload}


def _spelled_scale(packed: PackedTensor) -> Tensor:
    scale = packed.scale.to(packed.dtype) if packed.spec.scale == "float32" else packed.scale
    return (scale.reshape(1) if scale.dim() == 0 else scale.reshape(scale.shape[0], -1)).contiguous()


def _offset(payload: Tensor, spec: QuantSpec, columns: int) -> Tensor:
    """Return codes in two's complement with an offset of half their range instead, or the other way round.

    That turns the top bit of each over. Unsigned codes have the offset already.
    """
    if spec.element_type.min >= 0:
        return payload
    bits = spec.element_type.bits
    return payload ^ pack(
        torch.full((columns,), 1 << (bits - 1), dtype=torch.uint8, device=payload.device), bits
    )


def _payload(
    tensors: Mapping[str, Tensor], format_name: str, spec: QuantSpec, where: str
) -> tuple[Tensor, tuple[int, int]]:
    """Return packed codes and the shape of the weight."""
    suffix = "weight" if format_name in _WHOLE else "weight_packed"
    codes, bits = tensors[suffix], spec.element_type.bits
    expected = torch.int32 if format_name == _WORDS else _WHOLE.get(format_name, torch.uint8)
    if codes.dtype != expected or codes.dim() != 2:
        raise CheckpointError(
            f"{where}: {suffix} must be a matrix of {expected}, found {codes.dtype} {tuple(codes.shape)}"
        )
    rows, columns = codes.shape
    if format_name == _WORDS:
        shape = _stated_shape(tensors["weight_shape"], codes, bits, where)
        return _offset(from_words(codes, packed_length(shape[1], bits)), spec, shape[1]), shape
    if format_name in _WHOLE and bits < 8:
        values = codes.float()
        if ((values < spec.element_type.min) | (values > spec.element_type.max)).any():
            raise CheckpointError(f"{where}: {suffix} holds codes beyond those of {spec.element}")
        return pack(encode(values, spec.element_type), bits), (rows, columns)
    return codes.view(torch.uint8), (rows, columns * codes.dtype.itemsize * 8 // bits)


def _stated_shape(stated: Tensor, words: Tensor, bits: int, where: str) -> tuple[int, int]:
    found = stated.flatten().tolist()
    if len(found) != 2 or found[0] != words.shape[0] or -(-found[1] * bits // 32) != words.shape[1]:
        raise CheckpointError(f"{where}: weight_shape {found} does not fit {tuple(words.shape)}")
    return int(found[0]), int(found[1])


def _zero_point(tensors: Mapping[str, Tensor], packed: PackedTensor, where: str) -> Tensor:
    """Return the zero points in the shape of the scales."""
    found, rows, bits = tensors[_ZERO_POINT], packed.shape[0], packed.spec.element_type.bits
    groups = packed.scale.numel() // rows
    expected = (-(-rows * bits // 32), groups)
    if found.dtype != torch.int32 or tuple(found.shape) != expected:
        raise CheckpointError(
            f"{where}: {_ZERO_POINT} must be torch.int32 {expected}, found {found.dtype} {tuple(found.shape)}"
        )
    payload = from_words(found.T.contiguous(), packed_length(rows, bits))
    return unpack(payload, bits, rows).T.reshape(packed.scale.shape)
