"""Spelling of experts' weights that are stacked in one tensor, the way round in which engines multiply them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats import QuantSpec
from octavo.core.packed import PackedTensor
from octavo.exporters.unified_hf.spelling import WHOLE_BYTES, check_parts, reshaped


def spell_stack(packed: PackedTensor) -> dict[str, Tensor]:
    """Return {suffix: tensor} of a packed stack [experts, out, in], as ModelOpt writes gpt-oss and Llama 4.

    Codes [experts, in, out], with 4 bits [experts, in/2, out]: byte [e, i, o] holds inputs 2i (low nibble) and 2i + 1.
    Scales of blocks [experts, in/b, out]. Scales of a whole weight are one number, which the experts share.
    """
    payload, scale = packed.payload.transpose(-1, -2), packed.scale
    if packed.spec.element in WHOLE_BYTES:
        payload = payload.view(WHOLE_BYTES[packed.spec.element])
    scale = scale.transpose(-1, -2) if scale.dim() == 3 else scale[0]
    tensors = {"weight": payload.contiguous(), "weight_scale": scale.contiguous()}
    return tensors if packed.global_scale is None else {**tensors, "weight_scale_2": packed.global_scale[0]}


def unspell_stack(
    tensors: Mapping[str, Tensor], spec: QuantSpec, dtype: torch.dtype, where: str
) -> PackedTensor:
    """Undo `spell_stack`; arguments and errors as in `spelling.unspell`, `spec` is that of the stack."""
    check_parts(tensors, spec, where)
    codes = tensors["weight"]
    if codes.dim() != 3:
        raise CheckpointError(
            f"{where} must have the dims experts, in, out; found shape {tuple(codes.shape)}"
        )
    payload = codes.view(torch.uint8).transpose(-1, -2).contiguous()
    experts, rows, length = payload.shape
    shape = (experts, rows, length * 8 // spec.element_type.bits)
    scale_shape = spec.granularity.scale_shape(shape)
    is_blocked = len(scale_shape) == 3
    stored = (experts, scale_shape[2], rows) if is_blocked else ()
    of = f"of a tensor {shape} packed as {spec}"
    scale = reshaped(tensors["weight_scale"], stored, stored, f"{where}: weight_scale {of}")
    scale = scale.transpose(-1, -2).contiguous() if is_blocked else scale.expand(experts)
    global_scale = tensors.get("weight_scale_2")
    if global_scale is not None:
        global_scale = reshaped(global_scale, (), (), f"{where}: weight_scale_2 {of}").expand(experts)
    return PackedTensor(payload, scale, global_scale, spec, shape, dtype)
