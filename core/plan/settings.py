"""Settings: what a config decides for every quantizer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from octavo.core.config.rules import Decision, Rule, decide
from octavo.core.errors import ConfigError, listed
from octavo.core.formats import QuantSpec
from octavo.core.plan.named_errors import naming
from octavo.core.plan.sites import Site
from octavo.core.plan.transforms import bias_of, rotation_of, rotation_problem
from octavo.core.quantizers import MAX, Bias, Calibrator, Rotation

if TYPE_CHECKING:
    from octavo.core.config.attributes import QuantizerAttributes


@dataclass(frozen=True)
class StageSetting:
    """One stage of one quantizer.

    Attributes:
        spec: The format.
        pinned_amax: Constant amax, or None when it is calibrated.
        range_mask: Stop gradients where a value saturates.
        calibrator: How calibration chooses amax.
        bias: What is subtracted before rounding and added again after, or None.
    """

    spec: QuantSpec
    pinned_amax: float | None = None
    range_mask: bool = True
    calibrator: Calibrator = MAX
    bias: Bias | None = None

    @property
    def has_static_bias(self) -> bool:
        """Whether calibration finds a bias."""
        return self.bias is not None and not self.bias.dynamic


@dataclass(frozen=True)
class LayerSetting:
    """One layer and its quantizers.

    Attributes:
        site: The layer.
        quantizers: Stages of each quantizer that is on, by its short name.
        reason: Why its weight is left out, or empty.
        rules: The entries of the config that match any of its quantizers.
        rotations: How quantizers rotate what they see, on or off, by short name.
    """

    site: Site
    quantizers: dict[str, tuple[StageSetting, ...]]
    reason: str
    rules: tuple[Rule, ...] = ()
    rotations: dict[str, Rotation] = field(default_factory=dict)

    @property
    def is_quantized(self) -> bool:
        """Whether any quantizer is on."""
        return bool(self.quantizers)

    @property
    def has_weight(self) -> bool:
        """Whether the layer has a weight that can be quantized; norms and poolings have none."""
        return bool(self.site.quantized.weight_slots())

    def transforms(self) -> dict[str, str]:
        """Return what quantizers do beside rounding, rotate or subtract a bias, by short name."""
        found: dict[str, list[str]] = {name: [str(rotation)] for name, rotation in self.rotations.items()}
        for name, stages in self.quantizers.items():
            if biases := [str(stage.bias) for stage in stages if stage.bias is not None]:
                found.setdefault(name, []).extend(biases)
        return {name: ", ".join(parts) for name, parts in found.items()}

    def names(self) -> list[str]:
        """Return the full names of all its quantizers, on or off."""
        return [self.site.quantizer_name(quantizer) for quantizer in self.site.quantized.quantizer_names]


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
            if name in layer.site.weight_quantizers():
                continue
            if any(stage.spec.global_max is not None and stage.pinned_amax is None for stage in stages):
                errors.append(
                    f"{layer.site.quantizer_name(name)}: the per-tensor scale of {stages[0].spec} needs calibration "
                    "and the algorithm is None; set 'algorithm': 'max'"
                )
            elif biases := [stage.bias for stage in stages if stage.has_static_bias]:
                errors.append(
                    f"{layer.site.quantizer_name(name)}: the static {biases[0]} needs calibration and the algorithm is "
                    "None; set 'algorithm': 'max'"
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


def _decide_layer(site: Site, config: Sequence[Rule]) -> LayerSetting:
    class_names = site.class_names()
    quantizers: dict[str, tuple[StageSetting, ...]] = {}
    rotations: dict[str, Rotation] = {}
    rules: list[Rule] = []
    reason = ""
    for quantizer in site.quantized.quantizer_names:
        name = site.quantizer_name(quantizer)
        decision = decide(name, class_names, config, aliases=site.config_names(quantizer))
        rules += decision.rules
        rotation = rotation_of(site, quantizer, decision.stages)
        if rotation is not None:
            rotations[quantizer] = rotation
        if decision.enabled:
            shape = site.quantized.quantizer_shape(site.layer, quantizer)
            stages = [a for a in decision.stages if a.enable]
            quantizers[quantizer] = stage_settings(name, stages, shape, site.is_stacked(quantizer))
        elif quantizer in site.weight_quantizers():
            reason = _off_reason(decision)
    if quantizers and (problem := rotation_problem(site, rotations)):
        raise ConfigError(problem)
    return LayerSetting(site, quantizers, reason, tuple(rules), rotations)


def stage_settings(
    name: str, stages: Sequence[QuantizerAttributes], shape: tuple[int, ...] | None, is_stacked: bool = False
) -> tuple[StageSetting, ...]:
    """Return what the attributes of `stages` mean for the quantizer `name`, which sees tensors of `shape`.

    Raises:
        ConfigError: they are wrong, or do not fit the shape.
        UnsupportedError: they are not available.
    """
    with naming(name):
        bias = bias_of(name.rpartition(".")[2], stages)
        return tuple(_stage_setting(stage, shape, is_stacked, bias) for stage in stages)


def _stage_setting(
    attributes: QuantizerAttributes, shape: tuple[int, ...] | None, is_stacked: bool, bias: Bias | None
) -> StageSetting:
    spec = attributes.to_spec().stacked() if is_stacked else attributes.to_spec()
    if shape is not None and all(shape):
        spec.granularity.scale_shape(shape)  # raises on axes that do not exist
    return StageSetting(
        spec, attributes.pinned_amax(), not attributes.pass_through_bwd, attributes.to_calibrator(), bias
    )


def _off_reason(decision: Decision) -> str:
    if not decision.rules:
        return "no entry of the config matches its weight"
    last = decision.rules[-1]
    return (
        f"turned off by {last}" if last.turns_off else f"left off by {last}, which does not say enable=True"
    )
