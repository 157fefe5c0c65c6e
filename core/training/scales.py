"""What becomes of scales in training: held, recomputed from the weights after each step, or learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.errors import ConfigError, nearest
from octavo.core.quantizers import TensorQuantizer
from octavo.core.training.participants import Participant, free

WeightScales = Literal["held", "recomputed", "lsq"]
ActivationScales = Literal["held", "lsq", "pact"]


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
        ConfigError: no scales of that kind can be learned, or not by that estimator.
    """
    weights = [q for layer in layers for q in free(layer.weights, layer.pinned)]
    others = [q for layer in layers for q in free(layer.others, layer.pinned)]
    for name, way, quantizers in (
        ("weight_scales", weight_scales, weights),
        ("activation_scales", activation_scales, others),
    ):
        if way == "held":
            continue
        learnable = [q for q in quantizers if q.spec is not None and "amax" in q.spec.state]
        if not (quantizers if way == "recomputed" else learnable):
            raise ConfigError(
                f"{name}={way!r}, and no quantizer of this kind has static scales that could be: they follow the "
                "values at hand, or are constant. Use 'held', or a config with static scales (type 'static')"
            )
        if way != "recomputed":
            for quantizer in learnable:
                quantizer.learn_amax(way)


@torch.no_grad()
def recompute_weight_scales(layers: Sequence[Participant]) -> None:
    """Set the scales of weights to what their largest magnitudes are now."""
    for layer in layers:
        changing = set(free(layer.weights, layer.pinned))
        for name, weight in layer.values().items():
            for quantizer in changing.intersection(layer.weights[name]):
                quantizer.set_state(**weight_state(layer.weights[name][0].scaled(weight), quantizer))


def weight_state(weight: Tensor, quantizer: TensorQuantizer) -> dict[str, Tensor]:
    """Return the state that a quantizer's format has for `weight` by its largest magnitudes."""
    assert quantizer.spec is not None  # noqa: S101 (participants have formats)
    collector = AmaxCollector(quantizer.spec)
    collector.collect(quantizer, weight)
    return collector.state() or {}
