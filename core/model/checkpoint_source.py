"""What a checkpoint is written from, by the checkpoint's names: a finalized model, or another checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import InputState, LayerFormat
from octavo.core.packed import PackedChain, PackedTensor


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """One quantized weight, and what lies beside it.

    Attributes:
        module: Name of its layer; of the tensor itself where that is a stack of weights.
        packed: Codes and scales.
        inputs: What quantizes its input, and the factor on it; None where nothing does.
        low_rank: The factors [rank, in] and [out, rank] of what is added to it, or None.
        is_segment: Whether it is one of several row segments of an expert's weight.
    """

    module: str
    packed: PackedTensor | PackedChain
    inputs: InputState | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    is_segment: bool = False

    @property
    def codes(self) -> PackedTensor:
        """Codes and scales; of two formats in turn, those of the first."""
        return self.packed.first if isinstance(self.packed, PackedChain) else self.packed

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of weights in one tensor."""
        return self.codes.spec.is_stacked


class CheckpointSource(Protocol):
    """The contents of a checkpoint, in the numbers of the dialect that it is written in.

    Attributes:
        dtype: Of the weights that the codes stand for.
        layers: Format of each quantized layer, as it is stored; of a stack each weight's.
        folded: Layers whose factor on the input is folded into what makes it.
        excluded: Layers with weights that are not quantized.
        modules: Modules that have tensors.
        cache: Format of keys and values in the cache, or None.
    """

    dtype: torch.dtype
    layers: dict[str, LayerFormat]
    folded: set[str]
    excluded: list[str]
    modules: set[str]
    cache: QuantSpec | None

    def tensors(self) -> Iterator[PackedWeight | tuple[str, Tensor]]:
        """Yield every quantized weight, and every other tensor with its name, once, block by block."""

    def cache_states(self) -> Mapping[str, InputState]:
        """Return what quantizes keys and values, by the quantizer's full name, where there are scales or biases."""


class NamedSource(CheckpointSource, Protocol):
    """A source whose tensors can be asked for by name: another checkpoint.

    Attributes:
        names: Names of all tensors; of quantized weights those of the codes.
    """

    names: Collection[str]

    def tensor(self, name: str) -> PackedWeight | Tensor:
        """Return what `tensors` yields of that name.

        Raises:
            UnsupportedError: the checkpoint's reader hands tensors out in their order only.
        """

    def inputs(self, layer: str) -> InputState | None:
        """Return what is done to the input of a quantized layer, or None for nothing."""


@dataclass(frozen=True)
class Ranks:
    """Over how many ranks a checkpoint is divided.

    Attributes:
        tp: Ranks that divide each layer (tensor parallel).
        pp: Stages of consecutive blocks (pipeline parallel).
        ep: Groups of the ranks of a stage that divide the experts of a layer (expert parallel).
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1


@runtime_checkable
class SourceExporter(Protocol):
    """An exporter that also writes what is no model: checkpoints are converted into its dialect."""

    def write(
        self, source: NamedSource, folder: Path, max_shard_bytes: int, target: str | None
    ) -> tuple[int, int]:
        """Write tensors and metadata into `folder`, where config.json is already; return their number and bytes.

        Args:
            source: What is written, in the numbers of this dialect, or in those for `target`.
            folder: Where files beside the weights already are.
            max_shard_bytes: Start a new shard rather than exceed this.
            target: Engine that will read it, or None.

        Raises:
            ExportError: a format has no place in this dialect; its layers are named.
            CheckpointError: what was written does not read back.
        """


@runtime_checkable
class RankedExporter(Protocol):
    """A `SourceExporter` whose checkpoints can be divided over ranks."""

    def for_ranks(self, ranks: Ranks) -> SourceExporter:
        """Return the exporter that divides so.

        Raises:
            ExportError: there are no such ranks.
        """
