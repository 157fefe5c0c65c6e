"""Another checkpoint, in this dialect's numbers, as the source of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ExportError, listed
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_source import NamedSource, PackedWeight
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.model.module_names import module_names
from octavo.core.packed import PackedChain, PackedTensor
from octavo.exporters.tensorrt_llm.caches import CACHE_QUANTIZERS, CACHES, cache_name
from octavo.exporters.tensorrt_llm.formats import format_for, formats
from octavo.exporters.tensorrt_llm.model_weights import experts_of
from octavo.exporters.tensorrt_llm.unspelling import state_of


class CheckpointWeights:
    """The tensors of a checkpoint by their names; see `source.WeightSource`.

    The last tensor is kept until another one is asked for: rows of one layer come one after the other.

    Args:
        source: The checkpoint.
        layout: Where its tensors are in the framework's model.
        config: Its hyperparameters, as in the framework's config.json.

    Raises:
        ExportError: a format of weights or of the cache has no place in this dialect; layers are named.
    """

    def __init__(self, source: NamedSource, layout: CheckpointLayout, config: Mapping[str, Any]) -> None:
        self.config = config
        self.layers: Mapping[str, LayerFormat] = source.layers
        self.modules = module_names(layout.names)
        self.experts = experts_of(layout, self.modules)
        self._source = source
        self._taken: set[str] = set()
        self._last: tuple[str, Tensor | PackedTensor | PackedChain] = ("", torch.empty(0))
        self._check_formats()
        self.cache_format = self._cache_format()

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._source.names

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._source.names

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedChain:
        """Return a tensor: packed where it is quantized, and [out, in]; as the framework has it elsewhere."""
        if self._last[0] != name:
            found = self._source.tensor(name)
            self._last = (name, found.packed if isinstance(found, PackedWeight) else found)
            self._taken.add(name)
        return self._last[1]

    def inputs(self, layer: str) -> InputState | None:
        """Return what is done to the input of a quantized layer, or None for nothing."""
        return self._source.inputs(layer)

    def cache(self, block: str) -> dict[str, InputState]:
        """Return what quantizes keys and values of the attention layer in a block, by the quantizer's short name.

        Engines take the scale 1 where a checkpoint has none.
        """
        if self._source.cache is None:
            return {}
        one = InputState(self._source.cache, state_of(torch.ones(()), self._source.cache))
        own = {
            name.rpartition(".")[2]: state
            for name, state in self._source.cache_states().items()
            if name.startswith(f"{block}.")
        }
        return {**dict.fromkeys(CACHE_QUANTIZERS, one), **own}

    def left(self) -> list[str]:
        """Return the tensors that nobody has asked for."""
        return sorted(set(self._source.names) - self._taken)

    def _check_formats(self) -> None:
        in_stacks = {
            matrix.removesuffix(".weight")
            for parameters in self.experts.values()
            for parts in parameters.values()
            for matrices in parts
            for matrix in matrices
        }
        unknown = [
            f"{name} ({layer})"
            for name, layer in self.layers.items()
            if (known := format_for(layer)) is None or (name in in_stacks and not known.stores_experts(False))
        ]
        if unknown:
            names = ", ".join(each.quant_algo for each in formats())
            of_experts = ", ".join(each.quant_algo for each in formats() if each.stores_experts(False))
            raise ExportError(
                f"{len(unknown)} layers have formats that TensorRT-LLM checkpoints cannot store: {listed(unknown, 2)}. "
                f"Linear layers are stored as {names}; experts as {of_experts}"
            )

    def _cache_format(self) -> str | None:
        cache, states = self._source.cache, self._source.cache_states()
        if cache is None:
            return None
        name = cache_name(cache)
        biased = [name for name, state in states.items() if state.bias_value is not None]
        if name is None or biased:
            found = f"biases of {listed(biased, 2)}" if biased else f"{cache}"
            raise ExportError(
                f"the KV cache of a TensorRT-LLM checkpoint has one format, {' or '.join(map(str, CACHES.values()))}, "
                f"and no biases; found {found}"
            )
        return name
