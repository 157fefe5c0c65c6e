"""Calibrating mixtures of experts: who was chosen, and scales for those who never were."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from octavo.core.errors import listed
from octavo.core.modules import QuantExperts, quantized_layers
from octavo.core.quantizers import TensorQuantizer

_EXPERT = re.compile(r"(?P<experts>.*\bexperts)\.(?P<index>\d+)\.(?P<own>.*)")
# The scale that the peer gives an expert of which nothing at all is known.
_NOTHING_KNOWN = 0.5


@contextmanager
def counting_tokens(model: nn.Module, all_experts: bool = False) -> Iterator[None]:
    """Count, for the time of a context, how many tokens each stacked expert is chosen for.

    Args:
        model: A quantized model.
        all_experts: Show every token to every expert; outputs stay those of the chosen ones.
    """
    layers = [layer for _, layer in quantized_layers(model) if isinstance(layer, QuantExperts)]
    for layer in layers:
        layer.start_counting(all_experts)
    try:
        yield
    finally:
        for layer in layers:
            layer.stop_counting()


def tokens_per_expert(model: nn.Module) -> dict[str, Tensor]:
    """Return int64 [experts] for each layer of stacked experts: tokens it was chosen for in the last calibration."""
    return {
        name: layer.tokens_per_expert
        for name, layer in quantized_layers(model)
        if isinstance(layer, QuantExperts) and layer.tokens_per_expert is not None
    }


def amax_of_unrouted(seen: Mapping[str, Tensor], unseen: list[str], model: nn.Module) -> dict[str, Tensor]:
    """Return maxima for input quantizers of experts, each a layer of its own, that no token was routed to.

    The largest of the other experts' inputs (where scales are per feature: of experts as wide); without any, the
    expert's own weight; else 0.5 (ModelOpt's rule).

    Args:
        seen: Maxima of the quantizers that data reached, by name.
        unseen: Names of the others.
        model: The quantized model.
    """
    found = {}
    for name in unseen:
        match = _EXPERT.fullmatch(name)
        if match is None:
            continue
        pattern = re.compile(rf"{re.escape(match['experts'])}\.\d+\.{re.escape(match['own'])}")
        own = cast(TensorQuantizer, model.get_submodule(name)).state_tensors()[0]  # on the expert's device
        others = [
            amax.to(own.device)
            for other, amax in seen.items()
            if pattern.fullmatch(other) and amax.shape == own.shape  # experts of other widths tell nothing
        ]
        found[name] = torch.stack(others).amax(0) if others else _weight_amax(model, name).expand(own.shape)
    return found


def routing_notes(model: nn.Module, unrouted: Iterable[str]) -> Iterator[str]:
    """Yield what a user should know of experts that the calibration data did not reach."""
    for name, tokens in tokens_per_expert(model).items():
        never = (tokens == 0).nonzero().flatten().tolist()
        if never:
            yield (
                f"{name}: {len(never)} of {len(tokens)} experts were never chosen ({listed(list(map(str, never)))}); "
                "they share the scales of the others' inputs"
            )
    names = list(unrouted)
    if names:
        yield (
            f"{len(names)} input quantizers of experts saw no token and got the largest scale of the others: "
            f"{listed(names, 2)}"
        )


def _weight_amax(model: nn.Module, name: str) -> Tensor:
    weight = getattr(model.get_submodule(name.rpartition(".")[0]), "weight", None)
    return torch.tensor(_NOTHING_KNOWN) if weight is None else weight.detach().abs().amax().float()
