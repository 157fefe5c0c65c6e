"""Settings: what a config decides for every quantizer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo.core.config.presets import expected_misses
from octavo.core.config.rules import Decision, Rule, decide
from octavo.core.errors import ConfigError, UnsupportedError, listed, nearest
from octavo.core.formats import QuantSpec
from octavo.core.plan.sites import Site

if TYPE_CHECKING:
    from octavo.core.config.attributes import QuantizerAttributes


@dataclass(frozen=True)
class StageSetting:
    """One stage of one quantizer.

    Attributes:
        spec: The format.
        pinned_amax: Constant amax, or None when it is calibrated.
        range_mask: Stop gradients where a value saturates.
    """

    spec: QuantSpec
    pinned_amax: float | None = None
    range_mask: bool = True


@dataclass(frozen=True)
class LayerSetting:
    """One layer and its quantizers.

    Attributes:
        site: The layer.
        quantizers: Stages of each quantizer that is on, by its short name.
        reason: Which rules left the others off, or why nothing is on.
    """

    site: Site
    quantizers: dict[str, tuple[StageSetting, ...]]
    reason: str

    @property
    def is_quantized(self) -> bool:
        """Whether any quantizer is on."""
        return bool(self.quantizers)


def decide_settings(sites: Sequence[Site], rules: Sequence[Rule]) -> list[LayerSetting]:
    """Apply `rules` to every quantizer of every site.

    Raises:
        ConfigError: attributes are wrong; the quantizer is named.
        UnsupportedError: attributes are not available; the quantizer is named.
    """
    return [_decide_layer(site, rules) for site in sites]


def without_calibration(layers: Sequence[LayerSetting]) -> tuple[list[LayerSetting], list[str], list[str]]:
    """Return (layers, warnings, errors) for a config whose algorithm is None, so that nothing sees data.

    Static activation scales then follow the values at hand, as they do in ModelOpt; a second-level scale has
    nothing to follow and is an error.
    """
    changed, dynamic, errors = [], [], []
    for layer in layers:
        quantizers = dict(layer.quantizers)
        for name, stages in layer.quantizers.items():
            if name == "weight_quantizer":
                continue
            if any(stage.spec.global_max is not None and stage.pinned_amax is None for stage in stages):
                errors.append(
                    f"{layer.site.quantizer_name(name)}: the per-tensor scale of {stages[0].spec} needs calibration "
                    "and the algorithm is None; set 'algorithm': 'max'"
                )
            elif any(stage.spec.state and stage.pinned_amax is None for stage in stages):
                dynamic.append(layer.site.quantizer_name(name))
                quantizers[name] = tuple(replace(s, spec=replace(s.spec, dynamic=True)) for s in stages)
        changed.append(replace(layer, quantizers=quantizers))
    if not dynamic:
        return changed, [], errors
    warning = (
        f"the algorithm is None, so {len(dynamic)} static activation quantizers are never calibrated: they follow "
        f"each tensor, and a checkpoint will have no scales for them ({listed(dynamic, 2)})"
    )
    return changed, [warning], errors


def unmatched_rules(sites: Sequence[Site], rules: Sequence[Rule]) -> list[str]:
    """Return a warning for each rule that matches no quantizer, with the nearest name.

    Rules that presets carry for other model families are no surprise and are left out.
    """
    names = {
        site.quantizer_name(q): site.class_names() for site in sites for q in site.quantized.quantizer_names
    }
    classes = frozenset().union(*names.values()) if names else frozenset()
    warnings = []
    for rule in rules:
        if any(
            rule.matches(f"{name}{stage}", cls) for name, cls in names.items() for stage in ("", ".0", ".1")
        ):
            continue
        if rule.pattern in expected_misses() and (rule.parent_class is None or not rule.enable):
            continue
        if rule.parent_class is not None and rule.parent_class not in classes:
            hint = nearest(rule.parent_class, [c for c in classes if c.startswith("nn.")])
        else:
            hint = nearest(rule.pattern.strip("*"), names)
        warnings.append(f"entry {rule} matches no quantizer of this model.{hint}")
    return warnings


def _decide_layer(site: Site, rules: Sequence[Rule]) -> LayerSetting:
    quantizers, reasons = {}, []
    for quantizer in site.quantized.quantizer_names:
        name = site.quantizer_name(quantizer)
        decision = decide(name, site.class_names(), rules)
        if any(attributes.rotate for attributes in decision.stages):
            raise UnsupportedError(f"{name}: rotate is not available in this version of Octavo")
        if decision.enabled:
            quantizers[quantizer] = tuple(_stage(name, a) for a in decision.stages if a.enable)
        elif quantizer == "weight_quantizer":
            reasons.append(_off_reason(decision))
    return LayerSetting(site, quantizers, "; ".join(reasons))


def _stage(name: str, attributes: QuantizerAttributes) -> StageSetting:
    try:
        spec = attributes.to_spec()
        return StageSetting(spec, attributes.pinned_amax(), not attributes.pass_through_bwd)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{name}: {error}") from error


def _off_reason(decision: Decision) -> str:
    if decision.rule is None:
        return "no entry of the config matches its weight"
    if decision.rule.enable is False:
        return f"turned off by {decision.rule}"
    return f"left off by {decision.rule}, which does not say enable=True"
