"""Building a plan: config and model in, plan out. Works on the meta device and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.statistics.sizes import parse_bytes
from octavo.core.config import load_config
from octavo.core.config.entries import parse_rules
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.core.graph.groups import Groups, probe_or_note, shared_input_groups
from octavo.core.model.description import ModelDescription
from octavo.core.plan.attention import left_out_attention
from octavo.core.plan.checks import (
    block_problems,
    state_problems,
    tied_problems,
    unshared_notes,
)
from octavo.core.plan.experts import expert_problems, stack_problems
from octavo.core.plan.model_state import check_plain
from octavo.core.plan.plan import Plan
from octavo.core.plan.settings import LayerSetting, decide_settings, without_calibration
from octavo.core.plan.sites import find_sites
from octavo.core.plan.statistics import budget_problems, statistics_sizes
from octavo.core.plan.tensor_parallel import tensor_parallel_problems
from octavo.core.plan.tensors import plan_tensors
from octavo.core.plan.unmatched import (
    describe_unmatched,
    empty_problems,
    is_surprising,
    unmatched_rules,
    weightless_problems,
)
from octavo.core.plugins import plugins


def plan(
    model: nn.Module,
    config: str | Mapping[str, Any],
    target: str | None = None,
    tp: int = 1,
    stats_budget: int | str | None = None,
) -> Plan:
    """Say what `quantize(model, config)` would do to every tensor, and what stands in the way.

    Args:
        model: The model, also on the meta device.
        config: A preset's name or a config.
        target: Engine that will serve the checkpoint (`vllm`, `sglang`, `trtllm`, `transformers`), to be told
            what it cannot load; None checks none.
        tp: Tensor-parallel size it will be served with, 1 or more.
        stats_budget: Bytes of statistics in memory while calibrating (`2GB`, say); None is no limit.

    Raises:
        ConfigError: the config, `target`, `tp` or `stats_budget` is wrong.
        UnsupportedError: the config asks for a quantizer that is not available.
        ModeError: the model is quantized already.
        PlanError: the family map contradicts the model's own dataflow, or a lazy layer has no shape yet.
    """
    check_plain(model)
    plugins().check_model(model)
    if not isinstance(tp, int) or tp < 1:
        raise ConfigError(f"tp={tp!r}: the tensor-parallel size must be a whole number, at least 1")
    budget = parse_bytes(stats_budget)
    loaded = load_config(config)
    rules = parse_rules(loaded["quant_cfg"])
    sites, reasons = find_sites(model, plugins().mixins(model))
    layers, uncalibrated, algorithm_errors = _with_algorithm(
        decide_settings(sites, rules), loaded["algorithm"]
    )
    unmatched = unmatched_rules(layers, rules)
    attention = left_out_attention(plugins().left_out_attention(model), rules)
    quantized = [layer for layer in layers if layer.is_quantized]
    description = plugins().describe_model(model)
    groups, notes = _groups(model, quantized, description)
    statistics = statistics_sizes(quantized, groups, loaded["algorithm"])
    exporter, target_errors, target_warnings = _with_target(layers, description, target, tp)
    errors = [
        *algorithm_errors,
        *empty_problems(layers, unmatched, attention, reasons),
        *weightless_problems(layers, rules, reasons),
        *expert_problems(model, reasons, rules),
        *stack_problems(quantized),
        *block_problems(quantized),
        *state_problems(quantized),
        *tied_problems(model, quantized),
        *tensor_parallel_problems(quantized, description, tp),
        *target_errors,
        *budget_problems(statistics, budget),
    ]
    warnings = [
        *(describe_unmatched(rule, layers) for rule in unmatched if is_surprising(rule)),
        *attention,
        *uncalibrated,
        *notes,
        *_default_notes(loaded["quant_cfg"]),
        *target_warnings,
    ]
    tensors = tuple(plan_tensors(model, layers, reasons))
    problems = (tuple(errors), tuple(warnings))
    return Plan(loaded, tensors, tuple(layers), groups, *problems, exporter, statistics, budget)


def _with_algorithm(
    layers: list[LayerSetting], algorithm: Any
) -> tuple[list[LayerSetting], list[str], list[str]]:
    """Return (layers, warnings, errors) of a config whose algorithm may be None or not available."""
    try:
        calibrates = bool(algorithms_of(algorithm))
    except UnsupportedError as error:
        return layers, [], [str(error)]
    return (layers, [], []) if calibrates else without_calibration(layers)


def _with_target(
    layers: Sequence[LayerSetting], description: ModelDescription | None, target: str | None, tp: int
) -> tuple[str | None, list[str], list[str]]:
    """Return (exporter, errors, warnings) of an engine, or nothing where none is named."""
    if target is None:
        return None, [], []
    from octavo.core.plan.targets import target_problems  # with the exporters' interface, only for a target

    return target_problems(layers, description, target, tp)


def _groups(
    model: nn.Module, layers: Sequence[LayerSetting], description: ModelDescription | None
) -> tuple[Groups, list[str]]:
    watched = {
        layer.site.name: layer.site.layer for layer in layers if "weight_quantizer" in layer.quantizers
    }
    inputs = plugins().tiny_inputs(model)
    recorder, note = (None, "") if inputs is None else probe_or_note(model, watched, inputs)
    probed = None if recorder is None else recorder.groups()
    notes = [note] if note else []
    if description is None and probed is None:
        notes += unshared_notes(layers)
    return shared_input_groups(watched, description, probed), notes


def _default_notes(quant_cfg: Any) -> list[str]:
    if isinstance(quant_cfg, Mapping) and not {"default", "*"} & quant_cfg.keys():
        return [
            "the dict form has no 'default': quantizers that no glob matches stay off, where ModelOpt "
            "would run them as INT8. Add 'default': {'enable': False} to say so"
        ]
    return []
