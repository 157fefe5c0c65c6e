"""The quantizers that take part in training: those that the config turned on, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from octavo.core.modules import QuantModule, quantized_layers
from octavo.core.quantizers import TensorQuantizer


@dataclass(frozen=True)
class Participant:
    """One layer of a model whose quantizers were just attached.

    Attributes:
        name: Its name in the model.
        layer: The layer.
        weights: Its quantizers of weights that are on, by short name; those of a chain in turn.
        others: Its other quantizers that are on.
        pinned: Those of both that the config gave a constant amax, which nothing changes.
    """

    name: str
    layer: QuantModule
    weights: dict[str, list[TensorQuantizer]]
    others: dict[str, list[TensorQuantizer]]
    pinned: frozenset[TensorQuantizer]

    def values(self) -> dict[str, Tensor]:
        """Return the weights that quantizers which are on stand for, by quantizer name."""
        return {name: w for name, w in self.layer.quantized_weights().items() if name in self.weights}


def participants(model: nn.Module) -> list[Participant]:
    """Return the layers of a model whose quantizers were attached and not calibrated yet, in its order."""
    found = []
    for name, layer in quantized_layers(model):
        stages = {
            short: [stage for stage in quantizer.stages() if stage.enabled and stage.spec is not None]
            for short, quantizer in layer.quantizers().items()
        }
        on = {short: chain for short, chain in stages.items() if chain}
        weights = {short: chain for short, chain in on.items() if short in layer.quantized_weights()}
        others = {short: chain for short, chain in on.items() if short not in weights}
        pinned = frozenset(q for chain in on.values() for q in chain if _is_pinned(q))
        if on:
            found.append(Participant(name, layer, weights, others, pinned))
    return found


def free(
    chains: dict[str, list[TensorQuantizer]], pinned: frozenset[TensorQuantizer]
) -> Iterator[TensorQuantizer]:
    """Yield the quantizers of chains with calibrated state that may change."""
    for chain in chains.values():
        yield from (quantizer for quantizer in chain if quantizer.named_state() and quantizer not in pinned)


def is_whole(weight: Tensor) -> bool:
    """Return whether all of a weight is here: it is no shard (FSDP2), and no placeholder (ZeRO-3)."""
    return type(weight).__name__ != "DTensor" and weight.numel() > 0


def _is_pinned(quantizer: TensorQuantizer) -> bool:
    return bool(quantizer.named_state()) and not quantizer.needs_calibration
