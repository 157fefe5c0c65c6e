"""What an exporter is, and what its readers hand back: the neutral side of every checkpoint dialect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from octavo.core.formats import QuantSpec
from octavo.core.model.export_report import ExportReport
from octavo.core.modules import QuantModule
from octavo.core.packed import PackedAffine, PackedChain, PackedTensor
from octavo.core.quantizers import Bias


@dataclass(frozen=True)
class Verdict:
    """Whether an engine loads a format in an exporter's dialect, and how that is known."""

    status: Literal["loads", "unknown", "refused"]
    evidence: str


@dataclass(frozen=True)
class LayerFormat:
    """How a checkpoint quantizes one layer.

    Attributes:
        weight: Format of its weight.
        inputs: Format of its input, or None when that is not quantized.
        then: Format in which the rounded weight is rounded once more, or None.
        smoothing: Empty; `scaled` where the input is multiplied by a factor for each channel, and the weight by its
            inverse; `low_rank` where a product of two thin matrices is added to the weight, too.
        zero_points: Whether the weight's codes, which are unsigned then, have a zero point for each block.
    """

    weight: QuantSpec
    inputs: QuantSpec | None
    then: QuantSpec | None = None
    smoothing: Literal["", "scaled", "low_rank"] = ""
    zero_points: bool = False

    def __str__(self) -> str:
        """Return what messages call it: `weights int8 channel0, inputs int8 tensor`."""
        then = "" if self.then is None else f" then {self.then}"
        return f"weights {self.weight}{then}, inputs {self.inputs}"


@dataclass(frozen=True)
class LinearFold:
    """Layers into whose rows a dialect folds the factor on another layer's input.

    Attributes:
        classes: Parts of names of the classes that hold both.
        maker: Name of the layer whose rows change, in such a module.
        reader: Name of the layer whose input has the factor.
    """

    classes: tuple[str, ...]
    maker: str
    reader: str


@dataclass(frozen=True)
class SmoothingFolds:
    """Into what a dialect folds the factors on inputs (`pre_quant_scale`) of layers of one format.

    Attributes:
        norms: Norms whose outputs these layers alone read.
        linears: Layers in front of them.
    """

    norms: bool = False
    linears: tuple[LinearFold, ...] = ()


@dataclass(frozen=True)
class InputState:
    """What a checkpoint says of an activation quantizer, or of a weight's beside codes and scales.

    Attributes:
        spec: Its format; None where it only multiplies.
        state: Its calibrated tensor, as `TensorQuantizer.set_state` takes it.
        pre_quant_scale: Factor of each channel [n], or None.
        low_rank: (`low_rank_down`, `low_rank_up`) of a weight's quantizer, or None.
        bias: How a bias follows from the tensor, or None.
        bias_value: That bias, fp32, broadcast to the tensor.
    """

    spec: QuantSpec | None
    state: dict[str, Tensor]
    pre_quant_scale: Tensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    bias: Bias | None = None
    bias_value: Tensor | None = None


class QuantizedCheckpoint(Protocol):
    """A quantized checkpoint that a reader has opened."""

    directory: Path
    dtype: torch.dtype
    layers: dict[str, LayerFormat]

    def tensors(self) -> Iterator[tuple[str, Tensor | PackedTensor | PackedChain | PackedAffine]]:
        """Yield every parameter by name: packed where it is quantized, as it is elsewhere."""

    def activations(self) -> dict[str, InputState]:
        """Return format and state of every activation quantizer by its full name in the checkpoint."""

    def cache_without_scales(self) -> dict[str, InputState]:
        """Return what quantizes keys and values of attention layers that `activations` has nothing for.

        By the quantizer's short name; empty when the cache is not quantized.
        """

    def describe(self) -> dict[str, Any]:
        """Return what `octavo inspect` shows, JSON-ready."""


@runtime_checkable
class OwnConfigExporter(Protocol):
    """An exporter whose checkpoints have a config.json of the dialect's own, where others have the framework's.

    Attributes:
        has_own_config: True.
    """

    has_own_config: bool


@runtime_checkable
class NamedCheckpoint(Protocol):
    """A checkpoint whose tensors can be asked for in any order."""

    def tensor(self, name: str) -> Tensor | PackedTensor | PackedChain | PackedAffine:
        """Return one of the parameters that `QuantizedCheckpoint.tensors` yields."""


class Dialect(Protocol):
    """How a dialect's numbers differ from the neutral ones, applied by `calibration.finalize`."""

    name: str

    def weight_spec(
        self, weight: QuantSpec, inputs: QuantSpec | None, then: QuantSpec | None = None
    ) -> QuantSpec:
        """Return the format in which the dialect stores a weight that was calibrated as `weight`.

        `then` is the format in which the rounded weight is rounded once more; it is given only where there is one.
        A stacked format stands for weights that a checkpoint holds in one tensor.
        """

    def weight_state(
        self, spec: QuantSpec, state: dict[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the state whose scales the dialect can store, for a weight of `dtype` in the stored format."""

    def shared_state(self, weights: Sequence[QuantSpec], shapes: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Return which state tensors the weights of layers with a common input share, by their maximum.

        A single stacked format asks which ones the weights of that stack share, in one tensor.
        """

    def smoothing_folds(self, layer: LayerFormat) -> SmoothingFolds:
        """Return into what factors on inputs of such layers are folded; asked only of layers that have one."""

    def has_place_for(self, layer: QuantModule, quantizer: str) -> bool:
        """Whether checkpoints hold what `quantizer` of `layer` does; finalizing turns it off if not."""

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state that a reader recovers for an activation that was calibrated with `state`."""


@runtime_checkable
class GroupingDialect(Protocol):
    """A dialect that chooses which layers share; for others all layers that read one tensor do."""

    def groups(self, model: nn.Module, groups: Iterable[Iterable[str]]) -> list[tuple[str, ...]]:
        """Return the groups of layers, by name, that share scales and factors on inputs.

        Args:
            model: The model, its quantizers as they were calibrated.
            groups: The layers that read one tensor.
        """


@runtime_checkable
class InputDialect(Protocol):
    """A dialect whose readers round some inputs by a rule of their own; for others inputs keep their formats."""

    def input_spec(self, spec: QuantSpec) -> QuantSpec:
        """Return the format in which readers round an input that was calibrated as `spec`; its state is the same."""


@runtime_checkable
class JoiningDialect(Protocol):
    """A dialect whose checkpoints hold some layers as one, and the experts of a layer; others hold every layer alone.

    What is done to the input of such layers is the same for all.
    """

    def joins(self, names: Sequence[str], layers: Sequence[LayerFormat]) -> bool:
        """Return whether layers that engines join have one scale for all, of weights and of inputs.

        Args:
            names: What they are called in the framework's checkpoints.
            layers: Their formats.
        """


class Exporter(Protocol):
    """One checkpoint format: writes a quantized model and reads it back.

    Attributes:
        name: By which `finalize` and plugins call it.
        dialect: Its numbers.
        quant_method: By which a `quantization_config` in config.json names it.
    """

    name: str
    quant_method: str
    dialect: Dialect

    def dialect_for(self, target: str) -> Dialect:
        """Return the numbers that the engine `target` computes with exactly."""

    def detect(self, directory: Path) -> bool:
        """Whether `directory` holds a checkpoint of this format."""

    def open(self, directory: Path) -> QuantizedCheckpoint:
        """Open a checkpoint."""

    def stores(self, layer: LayerFormat) -> bool:
        """Whether a checkpoint of this format can be written of a layer of that format."""

    def serves(self, target: str, layer: LayerFormat) -> Verdict:
        """Say whether the engine `target` loads a layer of this format."""

    def serves_shape(self, target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
        """Say whether `target` loads a weight [out, in] of this format, which it joins with others or not.

        Stacked experts have the shape [experts, out, in].
        """

    def serves_cache(self, target: str, cache: QuantSpec) -> Verdict:
        """Say whether the engine `target` quantizes keys and values in this format."""

    def serves_mixture(self, target: str, layers: Collection[LayerFormat]) -> Verdict:
        """Say whether the engine `target` loads a checkpoint whose layers have all of these formats."""

    def export(self, model: nn.Module, export_dir: Path, **options: Any) -> ExportReport:
        """Write `model` to `export_dir`."""
