"""Building a plan: config and model in, plan out. Works on the meta device and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from octavo.core.config import load_config
from octavo.core.config.rules import Rule, parse_rules
from octavo.core.errors import ModeError, PlanError
from octavo.core.formats import QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.graph.groups import Groups, probe, shared_input_groups
from octavo.core.model.description import ModelDescription
from octavo.core.modules import quantized_layers
from octavo.core.plan.checks import block_problems, state_problems, tensor_parallel_problems, tied_problems
from octavo.core.plan.plan import Plan, TensorPlan
from octavo.core.plan.settings import LayerSetting, decide_settings, unmatched_rules, without_calibration
from octavo.core.plan.sites import Site, find_sites
from octavo.core.plan.targets import target_problems
from octavo.core.plugins import plugins

_SCALE_BYTES = {"float32": 4, "e4m3": 1, "e8m0": 1}


def plan(model: nn.Module, config: str | Mapping[str, Any], target: str | None = None, tp: int = 1) -> Plan:
    """Say what `quantize(model, config)` would do to every tensor, and what stands in the way.

    Args:
        model: The model, also on the meta device.
        config: A preset's name or a config.
        target: Engine that will serve the checkpoint (`vllm`, `sglang`, `trtllm`, `transformers`), to be told
            what it cannot load; None checks none.
        tp: Tensor-parallel size it will be served with.

    Raises:
        ConfigError: the config is wrong.
        UnsupportedError: the config asks for something that is not available.
        ModeError: the model is quantized already.
    """
    already = [name for name, _ in quantized_layers(model)]
    if already:
        raise ModeError(
            f"the model is quantized already ({len(already)} layers, first {already[0]!r}); "
            "call octavo.unquantize(model) first"
        )
    loaded = load_config(config)
    rules = parse_rules(loaded["quant_cfg"])
    sites, reasons = find_sites(model, plugins().attention_layers(model))
    layers = decide_settings(sites, rules)
    uncalibrated: list[str] = []
    calibration_errors: list[str] = []
    if loaded["algorithm"] is None:
        layers, uncalibrated, calibration_errors = without_calibration(layers)
    quantized = [layer for layer in layers if layer.is_quantized]
    description = plugins().describe_model(model)
    groups, notes = _groups(model, quantized, description)
    errors = [
        *calibration_errors,
        *_empty_problems(quantized, sites, rules),
        *block_problems(quantized),
        *state_problems(quantized),
        *tied_problems(model, quantized),
        *(tensor_parallel_problems(quantized, description, tp) if tp > 1 else ()),
    ]
    target_errors, target_warnings = target_problems(quantized, target)
    warnings = [
        *unmatched_rules(sites, rules),
        *uncalibrated,
        *notes,
        *_default_notes(loaded["quant_cfg"]),
        *target_warnings,
    ]
    tensors = tuple(_tensors(model, layers, reasons))
    return Plan(loaded, tensors, tuple(layers), groups, (*errors, *target_errors), tuple(warnings))


def _groups(
    model: nn.Module, layers: Sequence[LayerSetting], description: ModelDescription | None
) -> tuple[Groups, list[str]]:
    watched = {
        layer.site.name: layer.site.layer for layer in layers if "weight_quantizer" in layer.quantizers
    }
    inputs = plugins().tiny_inputs(model)
    if inputs is None:
        return shared_input_groups(watched, description, None), []
    try:
        probed = probe(model, watched, inputs).groups()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        note = f"the dataflow probe could not run ({type(error).__name__}: {str(error).splitlines()[0]})"
        return shared_input_groups(watched, description, None), [note]
    return shared_input_groups(watched, description, probed), []


def _empty_problems(
    quantized: Sequence[LayerSetting], sites: Sequence[Site], rules: Sequence[Rule]
) -> list[str]:
    if quantized:
        return []
    if not sites:
        return ["the model has no layer that can be quantized"]
    unmatched = unmatched_rules(sites, rules)
    why = "; ".join(unmatched) if unmatched else "every entry that matches leaves its quantizers off"
    example = sites[0].quantizer_name(sites[0].quantized.quantizer_names[0])
    return [f"the config turns on no quantizer: {why}. A quantizer's name looks like {example!r}"]


def _default_notes(quant_cfg: Any) -> list[str]:
    if isinstance(quant_cfg, Mapping) and not {"default", "*"} & quant_cfg.keys():
        return [
            "the dict form has no 'default': quantizers that no glob matches stay off, where ModelOpt "
            "would run them as INT8. Add 'default': {'enable': False} to say so"
        ]
    return []


def _tensors(
    model: nn.Module, layers: Sequence[LayerSetting], reasons: Mapping[str, str]
) -> Iterator[TensorPlan]:
    by_name = {layer.site.name: layer for layer in layers}
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        layer = by_name.get(owner)
        weight = _specs(layer, "weight_quantizer") if own_name == "weight" else ()
        inputs = _specs(layer, "input_quantizer") if weight else ()
        reason = "" if weight else _reason(parameter, layer, reasons.get(owner))
        after = _quantized_bytes(parameter, weight) if weight else parameter.nbytes
        dtype = str(parameter.dtype).removeprefix("torch.")
        yield TensorPlan(name, tuple(parameter.shape), dtype, weight, inputs, reason, parameter.nbytes, after)


def _specs(layer: LayerSetting | None, quantizer: str) -> tuple[QuantSpec, ...]:
    return tuple(stage.spec for stage in layer.quantizers.get(quantizer, ())) if layer is not None else ()


def _reason(parameter: Tensor, layer: LayerSetting | None, reason: str | None) -> str:
    if parameter.dim() < 2:
        return "a vector (norm or bias)"
    if layer is not None and layer.reason:
        return layer.reason
    return reason or "no quantizer stands for it"


def _quantized_bytes(weight: Tensor, specs: Sequence[QuantSpec]) -> int:
    shape = tuple(weight.shape)
    codes = math.prod(shape[:-1]) * packed_length(shape[-1], specs[0].element_type.bits)
    scales = [math.prod(spec.granularity.scale_shape(shape)) * _SCALE_BYTES[spec.scale] for spec in specs]
    return codes + sum(scales) + 4 * sum(spec.global_max is not None for spec in specs)


def check_device(model: nn.Module) -> None:
    """Refuse a model whose weights are not loaded.

    Raises:
        PlanError: parameters are on the meta device; the first is named.
    """
    meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if meta:
        raise PlanError(
            f"{len(meta)} parameters are on the meta device, without values (first {meta[0]!r}); "
            "load the weights first. octavo.plan works on such a model"
        )
