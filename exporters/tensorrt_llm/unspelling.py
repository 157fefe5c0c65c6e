"""Unspelling: tensors of TensorRT-LLM's files as packed tensors, whatever they are called and laid out there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.formats.packing import pack, unpack
from octavo.core.model.activation_scales import state_from_scale
from octavo.core.model.shard_reader import positive_number
from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.tensorrt_llm.formats import Format

WEIGHT, SECOND = "weight", "weights_scaling_factor_2"
SCALES = ("weights_scaling_factor", "per_channel_scale")
_CODES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.int8, "e2m1": torch.uint8}


def unspell(
    tensors: Mapping[str, Tensor], known: Format, dtype: torch.dtype, where: str
) -> PackedTensor | PackedChain:
    """Return a weight [out, in] from its tensors.

    Args:
        tensors: {suffix: tensor}: `weight` and its scales. INT4 is int8 [out/2, in], byte [j, i] holding rows 2j (low
            nibble) and 2j + 1; a scale of the whole weight is [1] or [], of rows [out], of blocks [out, in/b].
        known: Its format.
        dtype: Dtype of the weight that it stands for.
        where: Files and layer, for messages.

    Raises:
        CheckpointError: a tensor is missing, its dtype or shape is another one, or a scale is not finite.
    """
    needed = [WEIGHT, known.scale, *([SECOND] if known.then or known.weight.global_max is not None else [])]
    for suffix in needed:
        if suffix not in tensors:
            raise CheckpointError(f"{where}: {suffix} is missing, which {known.quant_algo} needs")
    _check_dtypes(tensors, known, where)
    payload, shape = _codes(tensors[WEIGHT], known, where)
    scale = tensors[known.scale]
    spec = stored_spec(known, tensors[WEIGHT].shape, scale.shape)
    second = tensors.get(SECOND)
    packed = PackedTensor(
        payload=payload,
        scale=scale.reshape(())
        if scale.numel() == 1 and not isinstance(spec.granularity, PerBlock)
        else scale,
        global_scale=None if spec.global_max is None or second is None else second.reshape(-1)[0],
        spec=spec,
        shape=shape,
        dtype=dtype,
    )
    try:
        packed.check()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if known.then is None or second is None:
        return packed
    return PackedChain(packed, known.then, tuple(state_of(second, known.then).values()))


def state_of(scale: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
    """Return the state of a quantizer whose maximum over the largest value of its format is `scale`, fp32 [1] or []."""
    return state_from_scale(scale, spec, spec.global_max or spec.element_type.max)


def stored_spec(known: Format, codes: Sequence[int], scale: Sequence[int]) -> QuantSpec:
    """Return the format of a weight whose codes and scale have these shapes, on a rank or as a whole.

    The shapes say how long blocks are where that is left open.
    """
    spec = known.stored_weight(known.weight)
    if spec.granularity != PerBlock(((-1, 1),)) or not codes or not scale:
        return spec
    per_byte = (
        1 if spec.element == "int4" else 8 // spec.element_type.bits
    )  # INT4 is packed along the outputs
    length = max(1, codes[-1] * per_byte // max(1, scale[-1]))
    return replace(spec, granularity=PerBlock(((-1, length),)))


def _codes(weight: Tensor, known: Format, where: str) -> tuple[Tensor, tuple[int, int]]:
    """Return the codes packed along the inputs, and the shape of the weight."""
    if weight.dim() != 2:
        raise CheckpointError(f"{where} must be a matrix, found shape {list(weight.shape)}")
    rows, columns = weight.shape
    if known.weight.element == "int4":
        rows *= 2
        nibbles = unpack(weight.view(torch.uint8).transpose(0, 1), 4, rows).transpose(0, 1)
        payload = pack(nibbles.contiguous(), 4)
    else:
        payload = weight.contiguous().view(torch.uint8)
        columns = columns * 8 // known.weight.element_type.bits
    return payload, (rows, columns)


def _check_dtypes(tensors: Mapping[str, Tensor], known: Format, where: str) -> None:
    scale = torch.float8_e4m3fn if known.weight.scale == "e4m3" else torch.float32
    expected = {WEIGHT: _CODES[known.weight.element], known.scale: scale, SECOND: torch.float32}
    for suffix, tensor in tensors.items():
        if suffix not in expected:
            continue
        if tensor.dtype != expected[suffix]:
            raise CheckpointError(
                f"{where}: {suffix} has dtype {tensor.dtype}, expected {expected[suffix]} for {known.quant_algo}"
            )
        if suffix == SECOND:
            positive_number(tensor, f"{where}: {suffix}")
        elif suffix != WEIGHT:
            _check_scales(tensor.float(), known, f"{where}: {suffix}")


def _check_scales(scales: Tensor, known: Format, where: str) -> None:
    if not scales.isfinite().all():
        raise CheckpointError(f"{where} holds NaN or infinite scales")
    if (scales < 0).any() and not known.weight.may_be_negative:
        raise CheckpointError(f"{where} holds negative scales")
