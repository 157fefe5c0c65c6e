"""Changing the quantizers of a quantized model: switching them, and giving them other formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from octavo.core.calibration.attach import make_quantizer
from octavo.core.calibration.finalized import check_not_finalized
from octavo.core.calibration.fold_mode import check_not_folded
from octavo.core.config.entries import parse_rules, stage_attributes
from octavo.core.config.rules import Rule, decide
from octavo.core.config.spec_attributes import spec_attributes
from octavo.core.config.transforms import transform_attributes
from octavo.core.console import say
from octavo.core.errors import ConfigError, ModeError, PlanError, listed
from octavo.core.modes.record import last_record
from octavo.core.modules import QuantModule, check_not_packed, class_key, quantized_layers
from octavo.core.plan.checks import block_problems, state_problems, tied_problems
from octavo.core.plan.settings import LayerSetting, StageSetting, stage_settings
from octavo.core.plan.sites import Site
from octavo.core.plan.transforms import rotation_of
from octavo.core.plan.unmatched import describe_unmatched, is_surprising, unmatched_rules
from octavo.core.quantizers import Quantizer, Rotation, TensorQuantizer

Names = str | Callable[[str], bool]  # a glob on quantizers' full names, or a function that is asked with each


def set_quantizer_by_cfg(model: nn.Module, quant_cfg: Any, quiet: bool = False) -> None:
    """Apply the entries of a `quant_cfg`, in either form, to the quantizers that a model has, in place.

    Entries mean what they mean in a config, and start from what the quantizers are now. A quantizer whose format
    changes loses its calibrated state: call `octavo.calibrate` next. Only layers that the config quantized have
    quantizers; to quantize others, `unquantize` the model and quantize it again.

    Args:
        model: A quantized model.
        quant_cfg: The `quant_cfg` of a config.
        quiet: Do not warn of entries that match nothing.

    Raises:
        ConfigError: an entry is wrong, or does not fit a quantizer; it is named. Nothing was changed.
        UnsupportedError: an attribute is not available.
        PlanError: a format does not fit a layer's shape, or a weight is tied to another module's.
        ModeError: the model is not quantized or is finalized for a dialect, or an entry would change the quantizer of
            a weight that is folded.
    """
    rules = parse_rules(quant_cfg)
    decided = _decide(model, rules)
    _apply(model, decided)
    layers = [decision.layer for decision in decided]
    for rule in unmatched_rules(layers, rules):
        if is_surprising(rule):
            say(f"warning: {describe_unmatched(rule, layers)}", quiet)


def set_quantizer_attribute(
    model: nn.Module,
    wildcard_or_filter_func: Names,
    attribute: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    parent_class: type[nn.Module] | str | None = None,
) -> None:
    """Merge attributes into those of the matching quantizers, in place.

    Args:
        model: A quantized model.
        wildcard_or_filter_func: Glob on quantizers' full names, or a function that is asked with each of them.
        attribute: Attributes as in a config's `cfg`. A list makes quantizers that run in turn.
        parent_class: Only quantizers of layers of this class, or of the class so called (`nn.Linear`).

    Raises:
        ConfigError, UnsupportedError, PlanError, ModeError: as in `set_quantizer_by_cfg`; or nothing matches.
    """
    class_name = class_key(parent_class) if isinstance(parent_class, type) else parent_class
    rule = Rule("*", class_name, merges=True)
    _change_matching(
        model, wildcard_or_filter_func, replace(rule, attributes=stage_attributes(attribute, rule))
    )


def enable_quantizer(model: nn.Module, wildcard_or_filter_func: Names) -> None:
    """Turn matching quantizers on that have a format, in place: what `disable_quantizer` turned off.

    One that never had a format stays off, where ModelOpt would run it as uncalibrated INT8.

    Raises:
        ConfigError: nothing matches, or nothing that matches has a format.
        ModeError: as in `set_quantizer_by_cfg`.
    """
    _change_matching(model, wildcard_or_filter_func, Rule("*", enable=True))


def disable_quantizer(model: nn.Module, wildcard_or_filter_func: Names) -> None:
    """Turn matching quantizers off, in place; they keep format and calibrated state.

    Raises:
        ConfigError: nothing matches.
        ModeError: as in `set_quantizer_by_cfg`.
    """
    _change_matching(model, wildcard_or_filter_func, Rule("*", enable=False))


@dataclass(frozen=True)
class _Decided:
    """What rules decide for one quantizer.

    Attributes:
        layer: Its layer with the stages of this quantizer alone, or with none where it has no format.
        quantizer: Its short name.
        enabled: Whether each stage is on.
        is_new: Whether the format is another than it has, or its amax is pinned, so that it is made anew.
    """

    layer: LayerSetting
    quantizer: str
    enabled: tuple[bool, ...] = ()
    is_new: bool = False

    @property
    def stages(self) -> tuple[StageSetting, ...]:
        return self.layer.quantizers.get(self.quantizer, ())

    @property
    def module(self) -> QuantModule:
        return cast(QuantModule, self.layer.site.layer)

    @property
    def current(self) -> Quantizer:
        return _current(self.module, self.quantizer)

    @property
    def changes_values(self) -> bool:
        return self.is_new or self.enabled != tuple(stage.enabled for stage in _formatted(self.current))


def _change_matching(model: nn.Module, names: Names, rule: Rule) -> None:
    """Apply one rule to the quantizers that `names` means; there must be some."""
    if isinstance(names, str):
        rule = replace(rule, pattern=names)
        decided = _decide(model, [rule])
        problem = describe_unmatched(rule, [decision.layer for decision in decided])
    else:
        decided = _decide(model, [rule], names)
        problem = f"{names!r} is true for no quantizer of this model."
    matched = [decision for decision in decided if decision.layer.rules]
    if not matched:
        raise ConfigError(f"{problem} Only layers that the config quantized have quantizers")
    if rule.enable and not any(decision.stages for decision in matched):
        first = matched[0].layer.site.quantizer_name(matched[0].quantizer)
        raise ConfigError(
            f"{len(matched)} quantizers match and none has a format to turn on (first {first!r}); give them one with "
            "octavo.set_quantizer_attribute"
        )
    _apply(model, decided)


def _decide(
    model: nn.Module, rules: Sequence[Rule], is_meant: Callable[[str], bool] = lambda name: True
) -> list[_Decided]:
    """Return what `rules` decide for every quantizer of `model` that `is_meant`."""
    if last_record(model, "quantize") is None:
        raise ModeError("the model is not quantized; call octavo.quantize first")
    check_not_finalized(model, "changing the quantizers of")
    sites = [Site(name, layer, type(layer)) for name, layer in quantized_layers(model)]
    return [
        _decide_quantizer(site, quantizer, rules if is_meant(site.quantizer_name(quantizer)) else ())
        for site in sites
        for quantizer in site.quantized.quantizer_names
    ]


def _decide_quantizer(site: Site, quantizer: str, rules: Sequence[Rule]) -> _Decided:
    name, current = site.quantizer_name(quantizer), _current(cast(QuantModule, site.layer), quantizer)
    before = [
        {
            **spec_attributes(stage.spec.unstacked()),
            **transform_attributes(stage.bias, stage.rotation),
            "enable": stage.enabled,
            "pass_through_bwd": not stage.range_mask,
        }
        for stage in _formatted(current)
        if stage.spec is not None
    ]
    classes = site.class_names()
    decision = decide(name, classes, rules, before, site.config_names(quantizer))
    if not decision.rules or not (before or any(map(_gives_format, decision.rules))):
        return _Decided(LayerSetting(site, {}, "", decision.rules), quantizer)
    _check_rotation(name, current.stages()[0].rotation, rotation_of(site, quantizer, decision.stages))
    shape = site.quantized.quantizer_shape(site.layer, quantizer)
    old, new = (
        stage_settings(name, stages, shape, site.is_stacked(quantizer))
        for stages in (decide(name, classes, (), before).stages, decision.stages)
    )
    # Compared with what its attributes mean, not with its spec: a model read back has a dialect's arithmetic.
    is_new = [(s.spec, s.pinned_amax, s.bias) for s in new] != [(s.spec, None, s.bias) for s in old]
    enabled = tuple(attributes.enable for attributes in decision.stages)
    return _Decided(LayerSetting(site, {quantizer: new}, "", decision.rules), quantizer, enabled, is_new)


def _check_rotation(name: str, current: Rotation | None, asked: Rotation | None) -> None:
    if current != asked:
        raise ConfigError(
            f"{name}: what rotates is chosen when a model is quantized; found {current or 'no rotation'}, asked for "
            f"{asked or 'none'}. Unquantize the model and quantize it again"
        )


def _current(layer: QuantModule, quantizer: str) -> Quantizer:
    """Return a quantizer of `layer`, or one that is off where the layer has none yet."""
    return layer.quantizers().get(quantizer, TensorQuantizer())


def _gives_format(rule: Rule) -> bool:
    return any(stage.keys() - {"enable"} for stage in rule.attributes or ())


def _formatted(quantizer: Quantizer) -> list[TensorQuantizer]:
    return [stage for stage in quantizer.stages() if stage.spec is not None]


@torch.inference_mode(False)
def _apply(model: nn.Module, decided: Sequence[_Decided]) -> None:
    """Make all quantizers as decided; nothing is changed where one of them cannot be."""
    changed = [decision for decision in decided if decision.stages]
    formats = [decision.layer for decision in changed if decision.is_new]
    turned_on = [decision.layer for decision in changed if decision.changes_values and any(decision.enabled)]
    problems = [*block_problems(formats), *state_problems(formats), *tied_problems(model, turned_on)]
    if problems:
        raise PlanError(f"{len(problems)} quantizers do not fit; nothing was changed: {listed(problems)}")
    if any(d.quantizer in d.module.quantized_weights() and d.changes_values for d in changed):
        check_not_folded(model, "change its weight quantizers")
        check_not_packed(model, "change their quantizers")
    for decision in changed:
        _apply_one(decision)


def _apply_one(decision: _Decided) -> None:
    layer, site = decision.module, decision.layer.site
    if decision.is_new:
        device = next((parameter.device for parameter in layer.parameters()), None)
        shape = site.quantized.quantizer_shape(layer, decision.quantizer) or ()
        quantizer = make_quantizer(decision.stages, shape, device)
        # What is folded into another weight stays, whatever the format.
        for name in ("pre_quant_scale", "low_rank_down", "low_rank_up"):
            setattr(quantizer.stages()[0], name, getattr(decision.current.stages()[0], name))
        quantizer.stages()[0].rotation = decision.current.stages()[0].rotation
        setattr(layer, decision.quantizer, quantizer)
    for stage, setting, enabled in zip(
        decision.current.stages(), decision.stages, decision.enabled, strict=True
    ):
        stage.enabled, stage.range_mask = enabled, setting.range_mask
