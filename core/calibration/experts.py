"""Calibrating mixtures of experts: who was chosen, and scales for those who never were."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from octavo.core.calibration.part import WHOLE, Part
from octavo.core.errors import listed
from octavo.core.modules import QuantExperts, quantized_layers
from octavo.core.quantizers import TensorQuantizer

# The name of a layer that is one expert's, or of something inside it.
EXPERT = re.compile(r"(?P<experts>.*\bexperts)\.(?P<index>\d+)\.(?P<own>.*)")
# The scale that the peer gives an expert of which nothing at all is known.
_NOTHING_KNOWN = 0.5


@contextmanager
def counting_tokens(
    model: nn.Module, all_experts: bool = False, part: Part = WHOLE
) -> Iterator[dict[str, list[int]]]:
    """Count, for the time of a context, how many tokens each expert is chosen for.

    Args:
        model: A quantized model.
        all_experts: Show every token to every stacked expert; outputs stay those of the chosen ones.
        part: Whose experts are counted.

    Yields:
        {name of the experts: the tokens of each}, filled when the context ends.
    """
    counts: dict[str, list[int]] = {}
    layers = [(name, layer) for name, layer in quantized_layers(model) if part.has(name)]
    stacks = [(name, layer) for name, layer in layers if isinstance(layer, QuantExperts)]
    single = _SingleExperts(layers)
    for _, layer in stacks:
        layer.start_counting(all_experts)
    try:
        yield counts
    finally:
        for _, layer in stacks:
            layer.stop_counting()
        single.stop()
        counts.update(single.counts())
        for name, layer in stacks:
            if layer.tokens_per_expert is not None:
                counts[name] = layer.tokens_per_expert.tolist()


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
        match = EXPERT.fullmatch(name)
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


def routing_notes(tokens: Mapping[str, Sequence[int]], unrouted: Iterable[str]) -> Iterator[str]:
    """Yield what a user should know of experts that the calibration data did not reach.

    Args:
        tokens: {name of the experts: the tokens of each}.
        unrouted: Names of quantizers that got `amax_of_unrouted`.
    """
    for name, counts in tokens.items():
        never = [str(index) for index, count in enumerate(counts) if count == 0]
        if never:
            yield (
                f"{name}: {len(never)} of {len(counts)} experts were never chosen ({listed(never)}); "
                "what the others' inputs show stands for theirs"
            )
    names = list(unrouted)
    if names:
        yield (
            f"{len(names)} input quantizers of experts saw no token and got the largest scale of the others: "
            f"{listed(names, 2)}"
        )


class _SingleExperts:
    """Counts the tokens of experts that are layers of their own, from now until `stop`."""

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        self._rows: dict[str, dict[int, dict[str, int]]] = {}
        self._handles = []
        for name, layer in layers:
            match = EXPERT.fullmatch(f"{name}.")
            if match is not None:
                rows = self._rows.setdefault(match["experts"], {}).setdefault(int(match["index"]), {})
                rows[match["own"]] = 0
                self._handles.append(layer.register_forward_pre_hook(_counter(rows, match["own"])))

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def counts(self) -> dict[str, list[int]]:
        """Return {name of the experts: the tokens of each}."""
        return {
            name: [
                max(experts[index].values()) if index in experts else 0 for index in range(max(experts) + 1)
            ]
            for name, experts in self._rows.items()
        }


def _counter(rows: dict[str, int], own: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim():
            rows[own] += args[0].shape[:-1].numel()

    return count


def _weight_amax(model: nn.Module, name: str) -> Tensor:
    weight = getattr(model.get_submodule(name.rpartition(".")[0]), "weight", None)
    return torch.tensor(_NOTHING_KNOWN) if weight is None else weight.detach().abs().amax().float()
