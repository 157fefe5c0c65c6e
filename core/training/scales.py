"""What becomes of scales in training: held, recomputed from the weights after each step, or learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.errors import ConfigError, TrainingError, nearest
from octavo.core.quantizers import TensorQuantizer
from octavo.core.quantizers.learned_amax import Estimator
from octavo.core.ranks.gathered import gathered
from octavo.core.training.participants import Participant, free, is_whole

WeightScales = Literal["held", "recomputed", "lsq"]
ActivationScales = Literal["held", "observed", "lsq", "pact"]


def check_scales(weight_scales: str, activation_scales: str) -> None:
    """Check the names of what becomes of scales.

    Raises:
        ConfigError: there is no such way.
    """
    for name, value, kind in (
        ("weight_scales", weight_scales, WeightScales),
        ("activation_scales", activation_scales, ActivationScales),
    ):
        if value not in (known := get_args(kind)):
            raise ConfigError(f"{name}={value!r}; expected one of {', '.join(known)}.{nearest(value, known)}")


def learn_scales(
    layers: Sequence[Participant], weight_scales: WeightScales, activation_scales: ActivationScales
) -> None:
    """Turn scales into parameters, where they are to be learned; before the optimizer is made.

    Raises:
        ConfigError: there are no scales of that kind that could be learned, recomputed or observed.
    """
    for name, way, quantizers in (
        ("weight_scales", weight_scales, [q for layer in layers for q in free(layer.weights, layer.pinned)]),
        ("activation_scales", activation_scales, activation_quantizers(layers)),
    ):
        learned = way if way in get_args(Estimator) else None
        if learned is not None:
            quantizers = [q for q in quantizers if q.spec is not None and "amax" in q.spec.state]
        if way != "held" and not quantizers:
            raise ConfigError(
                f"{name}={way!r}, and no quantizer of this kind has static scales that could be: they follow the "
                "values at hand, or are constant. Use 'held', or a config with static scales (type 'static')"
            )
        if learned is not None:
            for quantizer in quantizers:
                quantizer.learn_amax(cast(Estimator, learned))


def activation_quantizers(layers: Sequence[Participant]) -> list[TensorQuantizer]:
    """Return the quantizers of other tensors than weights whose state may change."""
    return [quantizer for layer in layers for quantizer in free(layer.others, layer.pinned)]


@torch.no_grad()
def recompute_weight_scales(layers: Sequence[Participant]) -> None:
    """Set the scales of weights to what their largest magnitudes are now; divided weights are gathered in turn.

    Raises:
        TrainingError: a weight is not here, and cannot be gathered.
    """
    for layer in layers:
        changing = set(free(layer.weights, layer.pinned))
        with gathered(layer.layer, [slot.parameter for slot in layer.layer.weight_slots()]):
            for name, weight in layer.values().items():
                if not is_whole(weight):
                    raise TrainingError(
                        f"the weight of {layer.name}.{name} has no values here: something divides it among ranks that "
                        "no plugin knows how to gather; use weight_scales='held' or 'lsq'"
                    )
                for quantizer in changing.intersection(layer.weights[name]):
                    quantizer.set_state(**weight_state(layer.weights[name][0].scaled(weight), quantizer))


def weight_state(weight: Tensor, quantizer: TensorQuantizer) -> dict[str, Tensor]:
    """Return the state that a quantizer's format has for `weight` by its largest magnitudes."""
    assert quantizer.spec is not None  # noqa: S101 (participants have formats)
    collector = AmaxCollector(quantizer.spec)
    collector.collect(quantizer, weight)
    return collector.state() or {}
