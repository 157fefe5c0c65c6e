"""Spelling: packed tensors and activations' states under the dialect's names, dtypes and layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.core.formats.packing import pack, unpack
from octavo.core.model.activation_scales import largest_value, scale_from_state
from octavo.core.model.exporter import InputState
from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS
from octavo.exporters.tensorrt_llm.formats import Format

_CODES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.int8, "e2m1": torch.uint8}


def spell(packed: PackedTensor | PackedChain, known: Format) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a weight [out, in].

    INT4 is packed along the output dim, int8 [out/2, in]: byte [j, i] holds rows 2j (low nibble) and 2j + 1. A scale
    of the whole weight has the shape [1], one of rows [out], one of blocks [out, in/b]; a second-level one of FP4 [],
    that of a second format [1].
    """
    if isinstance(packed, PackedChain):
        second = scale_from_state(
            dict(zip(packed.then.state, packed.state, strict=True)), packed.then.element_type.max
        )
        return {**spell(packed.first, known), "weights_scaling_factor_2": second.reshape(1)}
    payload, scale = packed.payload, packed.scale
    if packed.spec.element == "int4":
        payload = pack(unpack(payload, 4, packed.shape[-1]).transpose(-1, -2), 4).transpose(-1, -2)
    tensors = {
        "weight": payload.contiguous().view(_CODES[packed.spec.element]),
        known.scale: (scale if scale.dim() else scale.reshape(1)).contiguous(),
    }
    return (
        tensors
        if packed.global_scale is None
        else {**tensors, "weights_scaling_factor_2": packed.global_scale}
    )


def spell_stack(experts: Sequence[PackedTensor], known: Format) -> dict[str, Tensor]:
    """Return {suffix: tensor} of experts' weights in one format: as `spell`, with a leading dim."""
    spelled = [spell(expert, known) for expert in experts]
    return {suffix: _stacked([each[suffix] for each in spelled]) for suffix in spelled[0]}


def spell_inputs(states: Sequence[InputState], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return {suffix: tensor} of what is done to the input that layers share: the largest scale, the one factor.

    A scale has the shape [1], in FP4 []; a factor [in] the checkpoint's `dtype`.
    """
    found: dict[str, Tensor] = {}
    scales = [_scale(state) for state in states if state.spec is not None and state.spec.state]
    if scales:
        largest = torch.stack(scales).amax()
        spec = states[0].spec
        is_fp4 = spec is not None and spec.global_max is not None
        found["activation_scaling_factor"] = largest if is_fp4 else largest.reshape(1)
    if states and states[0].pre_quant_scale is not None:
        found["prequant_scaling_factor"] = states[0].pre_quant_scale.to(dtype)
    return found


def spell_cache(states: Mapping[str, InputState]) -> dict[str, Tensor]:
    """Return {suffix: tensor [1]} of an attention layer's keys and values; readers of older versions use the joint one.

    Empty where scales are not stored.
    """
    scales = [
        _scale(states[name]).reshape(1) for name in CACHE_QUANTIZERS if name in states and states[name].state
    ]
    if len(scales) != len(CACHE_QUANTIZERS):
        return {}
    keys, values = scales
    return {
        "k_cache_scaling_factor": keys,
        "v_cache_scaling_factor": values,
        "kv_cache_scaling_factor": torch.maximum(keys, values),
    }


def _scale(state: InputState) -> Tensor:
    assert state.spec is not None  # noqa: S101 (states without a format have no scale)
    return scale_from_state(state.state, largest_value(state.spec))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].element_size() == 1:  # 8-bit floats go as bytes, which every device joins
        return torch.stack([tensor.view(torch.uint8) for tensor in tensors]).view(tensors[0].dtype)
    return torch.stack(list(tensors))
