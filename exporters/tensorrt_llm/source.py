"""WeightSource: what the stream of a checkpoint is made of, whether a model or another checkpoint has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch import Tensor

from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.packed import PackedChain, PackedTensor


class WeightSource(Protocol):
    """The tensors of a model, with the numbers of this dialect; all names are those of the framework's checkpoints."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's hyperparameters, as in the framework's config.json."""

    @property
    def layers(self) -> Mapping[str, LayerFormat]:
        """Format of each quantized layer by its name; of each expert's matrix where these are stacked."""

    @property
    def experts(self) -> Mapping[str, Mapping[str, tuple[tuple[str, ...], ...]]]:
        """The names of the matrices that the parameters of each module of stacked experts hold.

        Of every expert, those of its row segments in order.
        """

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedChain:
        """Return a tensor: packed where it is quantized, and [out, in]; as the framework has it elsewhere."""

    def inputs(self, layer: str) -> InputState | None:
        """Return what is done to the input of a quantized layer, or None for nothing."""

    def cache(self, block: str) -> Mapping[str, InputState]:
        """Return what quantizes keys and values of the attention layer in a block, by the quantizer's short name.

        Empty where the cache is not quantized.
        """
