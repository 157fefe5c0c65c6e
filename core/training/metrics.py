"""How far rounded weights are from the weights, and scales from the weights they were made for, during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.calibration.solvers.sqnr import tensor_sqnr
from octavo.core.quantizers import TensorQuantizer
from octavo.core.training.participants import Participant, is_whole
from octavo.core.training.scales import weight_state


@dataclass(frozen=True)
class WeightMetrics:
    """One weight at one step.

    Attributes:
        sqnr_db: Its signal-to-quantization-noise ratio in dB, whether it is rounded at this step or not; None where
            nothing is lost.
        scale_drift: Mean distance, in octaves, of its scales from those that its largest magnitudes would give now;
            None where scales follow the values at hand.
    """

    sqnr_db: float | None
    scale_drift: float | None


@torch.no_grad()
def weight_metrics(layers: Sequence[Participant]) -> dict[str, WeightMetrics]:
    """Return the metrics of each rounded weight, by its layer's name (and the quantizer's, if it has several).

    Sharded weights, of which a rank has a part, are left out.
    """
    return {
        layer.name if len(layer.weights) == 1 else f"{layer.name}.{name}": _metrics(
            weight, layer.weights[name]
        )
        for layer in layers
        for name, weight in layer.values().items()
        if is_whole(weight)
    }


def summary(metrics: Mapping[str, WeightMetrics]) -> dict[str, float]:
    """Return the mean and the worst of all weights, as numbers for a log."""
    found: dict[str, float] = {}
    sqnr = [m.sqnr_db for m in metrics.values() if m.sqnr_db is not None]
    drift = [m.scale_drift for m in metrics.values() if m.scale_drift is not None]
    if sqnr:
        found |= {"weight_sqnr_db": sum(sqnr) / len(sqnr), "weight_sqnr_db_min": min(sqnr)}
    if drift:
        found |= {"scale_drift": sum(drift) / len(drift), "scale_drift_max": max(drift)}
    return found


def by_layer(metrics: Mapping[str, WeightMetrics]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of each weight, as `weight_sqnr_db/<layer>` and `scale_drift/<layer>`."""
    for name, of_weight in metrics.items():
        for kind, value in (("weight_sqnr_db", of_weight.sqnr_db), ("scale_drift", of_weight.scale_drift)):
            if value is not None:
                yield f"{kind}/{name}", value


def _metrics(weight: Tensor, chain: Sequence[TensorQuantizer]) -> WeightMetrics:
    exact = rounded = chain[0].scaled(weight)
    for stage in chain:
        assert stage.spec is not None  # noqa: S101 (participants have formats)
        rounded = ops.fake_quantize(rounded, stage.state_tensors(), stage.spec.key)
    return WeightMetrics(tensor_sqnr(exact, rounded), _drift(exact, chain[0]))


def _drift(weight: Tensor, quantizer: TensorQuantizer) -> float | None:
    state = quantizer.named_state()
    if not state:
        return None
    name = next(iter(state))
    now, fresh = state[name].abs(), weight_state(weight, quantizer)[name]
    known = (now > 0) & (fresh > 0)
    return float(torch.log2(now[known] / fresh[known]).abs().mean()) if known.any() else None
