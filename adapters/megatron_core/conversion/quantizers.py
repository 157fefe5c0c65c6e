"""The quantizers of a Megatron model, attached to the Hugging Face model that it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.adapters.megatron_core.conversion.layer_states import FACTOR, tensor_name
from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.placing import put
from octavo.adapters.megatron_core.conversion.quantizer_sites import (
    Piece,
    Site,
    attention_sites,
    weight_sites,
)
from octavo.adapters.megatron_core.conversion.shares import SharedTensors
from octavo.core.calibration.layer_records import attach_described
from octavo.core.errors import UnsupportedError
from octavo.core.formats import QuantSpec
from octavo.core.graph.groups import shared_input_groups
from octavo.core.modes.record import ModeRecord, set_history
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.rank_groups import follows

_NO_FACTORS = ("pre_quant_scale", "low_rank_down", "low_rank_up", "bias_value")


def attach_gathered(
    original: Original, layers: Mapping[str, Any], shared: SharedTensors, config: Mapping[str, Any]
) -> None:
    """Make the Hugging Face model of `original` the quantized model that the Megatron model is, but for its weights.

    Scales of a fused weight go to each tensor that it holds; of experts' inputs, which a Hugging Face model has one
    quantizer for, the largest is taken.

    Args:
        original: The model, on the meta device.
        layers: Records of the Megatron model's quantized layers.
        shared: The tensors of their quantizers.
        config: What the Megatron model was quantized with, for the record.

    Raises:
        UnsupportedError: a quantizer has no counterpart.
    """
    model = original.skeleton.model
    sites, attention = weight_sites(original, layers), attention_sites(original, layers)
    attach_described(model, _records(sites, attention, layers))
    for _, quantizer in tensor_quantizers(model):
        quantizer.to_empty(device="cpu")
        if "calibrated" in quantizer._buffers:
            quantizer.calibrated.zero_()
    gathered = _Gathered(layers, shared)
    for site in sites:
        gathered.set_weight(site, model)
        gathered.set_inputs(site, model)
    for name, module in attention.items():
        gathered.set_attention(name, model.get_submodule(module))
    groups = shared_input_groups({site.module for site in sites}, original.description, None)
    state = {"layers": {}, "same_input": [list(group) for group in groups], "report": {}}
    set_history(model, (ModeRecord("quantize", 1, config, state),))


def _records(
    sites: Sequence[Site], attention: Mapping[str, str], layers: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the records of the Hugging Face model's quantized layers, as `attach_described` takes them."""
    records: dict[str, dict[str, Any]] = {}
    for site in sites:
        found = [layers[name]["quantizers"] for name in site.layers]
        for kind in ("weight_quantizer", "input_quantizer"):
            if any(_without_factors(one[kind]) != _without_factors(found[0][kind]) for one in found):
                raise UnsupportedError(
                    f"the experts of {site.module} have one format in a Hugging Face model, and {kind} of "
                    f"{site.layers[0]} and others differ; quantize all in the same way"
                )
        quantizers = records.setdefault(site.module, {"attention": False, "quantizers": {}})["quantizers"]
        weight = _without_factors(found[0]["weight_quantizer"])
        quantizers[site.weight_quantizer] = (
            [_stacked(stage) for stage in weight] if site.is_stacked else weight
        )
        quantizers[site.input_quantizer] = _without_factors(found[0]["input_quantizer"])
        if not site.is_stacked:
            quantizers["output_quantizer"] = []  # whose place no checkpoint has
    for name, module in attention.items():
        records[module] = {"attention": True, "quantizers": dict(layers[name]["quantizers"])}
    return records


def _without_factors(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the stages that have a format; factors are set when their shapes are known."""
    return [{k: v for k, v in stage.items() if k not in _NO_FACTORS} for stage in stages if stage.get("spec")]


def _stacked(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {**stage, "spec": QuantSpec.from_json(stage["spec"]).stacked().to_json()}


class _Gathered:
    """Tensors of quantizers, put together from the parts that ranks have."""

    def __init__(self, layers: Mapping[str, Any], shared: SharedTensors) -> None:
        self._layers, self._shared = layers, shared

    def set_weight(self, site: Site, model: nn.Module) -> None:
        """Set the state of a weight's quantizer."""
        for number, stage in enumerate(_stages(model, f"{site.module}.{site.weight_quantizer}")):
            assert stage.spec is not None  # noqa: S101 (records without a format are left out)
            state = {name: self._of_weight(site, number, name, stage.spec) for name in stage.spec.state}
            _set(stage, state)

    def set_inputs(self, site: Site, model: nn.Module) -> None:
        """Set the state of the quantizer of what a weight is multiplied with."""
        quantizer = f"{site.module}.{site.input_quantizer}"
        for number, stage in enumerate(_stages(model, quantizer)):
            state = {}
            for name in () if stage.spec is None else stage.spec.state:
                found = [self._of_input(layer, number, name, site) for layer in site.layers]
                known = [tensor for tensor in found if tensor is not None]
                state[name] = torch.stack(known).amax(0) if known else None
            _set(stage, state)
        factors = [self._of_input(layer, 0, FACTOR, site) for layer in site.layers]
        if factors[0] is not None:
            if any(factor is None or not torch.equal(factor, factors[0]) for factor in factors):
                raise UnsupportedError(
                    f"the experts of {site.module} have one factor on their input in a Hugging Face model, and those "
                    f"of {site.layers[0]} and others differ"
                )
            model.get_submodule(quantizer).pre_quant_scale = factors[0]

    def set_attention(self, name: str, attention: nn.Module) -> None:
        """Set the state of the quantizers of queries, keys and values."""
        for quantizer in self._layers[name]["quantizers"]:
            for number, stage in enumerate(_stages(attention, quantizer)):
                names = () if stage.spec is None else stage.spec.state
                _set(
                    stage,
                    {own: self._whole(f"{name}.{tensor_name(quantizer, number, own)}") for own in names},
                )

    def _of_weight(self, site: Site, stage: int, name: str, spec: QuantSpec) -> Tensor | None:
        """Return a tensor of a weight's quantizer, or None where it is not calibrated."""
        follows_rows = name == "amax" and follows(spec.unstacked(), -2, 2)
        matrices = []
        for pieces in site.pieces:
            found = [self._of_piece(piece, stage, name) for piece in pieces]
            if any(tensor is None for tensor in found):
                return None
            rows = [tensor for tensor in found if tensor is not None]
            matrices.append(torch.cat(rows) if follows_rows else torch.stack(rows).amax(0))
        return torch.stack(matrices) if site.is_stacked else matrices[0]

    def _of_piece(self, piece: Piece, stage: int, name: str) -> Tensor | None:
        """Return a weight quantizer's tensor for one tensor of the checkpoint, as its format has it."""
        own = tensor_name("weight_quantizer", stage, name)
        tensor = self._divided(piece.layer, own, piece.tensor, piece.part)
        has_row_scales = self._layers[piece.layer]["has_row_scales"] and name == "amax"
        return tensor.amax() if has_row_scales and tensor is not None else tensor

    def _of_input(self, layer: str, stage: int, name: str, site: Site) -> Tensor | None:
        piece = next(piece for rows in site.pieces for piece in rows if piece.layer == layer)
        return self._divided(layer, tensor_name("input_quantizer", stage, name), piece.tensor, piece.part)

    def _divided(self, layer: str, own: str, tensor: Any, part: int) -> Tensor | None:
        """Return the part of a quantizer's tensor that stands for one part of the weight; None where there is none."""
        name = f"{layer}.{own}"
        dim = self._layers[layer]["divided"].get(own)
        if name not in self._shared or dim is None:
            return self._whole(name)
        shape = list(self._shared.share(name).shape)
        unit = self._shared.share(tensor.name).shape[tensor.dim] // shape[dim]
        views = []
        for one in tensor.parts:
            shape[dim] = one.shape[tensor.dim] // unit
            views.append(torch.empty(shape))
        for share, values in self._shared.parts(name):
            put(values, share, tensor, views, dim, unit)
        return views[part]

    def _whole(self, name: str) -> Tensor | None:
        """Return a tensor of which every rank has all, or None where there is none."""
        if name not in self._shared:
            return None
        return next(values for _, values in self._shared.parts(name)).cpu()


def _stages(model: nn.Module, quantizer: str) -> list[TensorQuantizer]:
    found: list[TensorQuantizer] = model.get_submodule(quantizer).stages()  # type: ignore[operator]
    return [stage for stage in found if stage.spec is not None]


def _set(stage: TensorQuantizer, state: Mapping[str, Tensor | None]) -> None:
    """Set the state of a quantizer; one that was never calibrated stays so."""
    known = {name: tensor for name, tensor in state.items() if tensor is not None}
    if known and len(known) == len(state):
        stage.set_state(**known)
