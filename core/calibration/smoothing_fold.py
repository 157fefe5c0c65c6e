"""Folding smoothing on the way out: factors of layers that read one tensor become one, and go into what made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from octavo.core.calibration.norm_kind import norm_kind
from octavo.core.calibration.originals import Originals
from octavo.core.calibration.smoothing_state import recollect
from octavo.core.errors import FOREIGN_FAILURES, listed
from octavo.core.graph.sole_readers import SoleReaders
from octavo.core.model.exporter import Dialect, LayerFormat, SmoothingFolds
from octavo.core.modules import QuantModule, WeightSlot, quantized_layers
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer

_NOT_PROBED = "who else reads what their norms make could not be seen"


@dataclass(frozen=True, eq=False)
class SmoothedWeight:
    """A weight whose input has a `pre_quant_scale`.

    Attributes:
        name: Its layer's name.
        layer: The layer.
        slot: Which of the layer's weights.
    """

    name: str
    layer: QuantModule
    slot: WeightSlot

    @property
    def inputs(self) -> TensorQuantizer:
        """The quantizer that multiplies the input."""
        return self.layer.quantizers()[self.slot.inputs].stages()[0]

    @property
    def factor(self) -> Tensor:
        """`pre_quant_scale` of the input [in] as checkpoints hold it, in the weight's dtype."""
        assert self.inputs.pre_quant_scale is not None  # noqa: S101 (only such weights are made)
        return self.inputs.pre_quant_scale.to(self.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The parameter's values [out, in]."""
        return self.layer.quantized_weights()[self.slot.quantizer].detach()

    @property
    def format(self) -> LayerFormat | None:
        """Formats of the weight and its input; None when the weight is not quantized."""
        return format_of(self.layer, self.slot)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """The two factors [rank, in] and [out, rank] of what is added to the weight."""
        stage = self.layer.quantizers()[self.slot.quantizer].stages()[0]
        if stage.low_rank_down is None or stage.low_rank_up is None:
            return None
        return stage.low_rank_down, stage.low_rank_up

    def resmooth(self, factor: Tensor, originals: Originals) -> None:
        """Give the input another factor [in], in the weight's dtype, and the weight its inverse: rounded again."""
        if not torch.equal(factor, self.factor):
            smoothed = _smoothed(self.layer, self.slot)
            values = (smoothed.float() * self.factor.float() / factor.float()).to(smoothed.dtype)
            _set_weight(self.layer, self.slot, values, originals)
        self.inputs.pre_quant_scale = factor.float()


def smoothed_weights(model: nn.Module) -> Iterator[SmoothedWeight]:
    """Yield the weights whose inputs have a `pre_quant_scale`."""
    for name, layer in quantized_layers(model):
        for slot in layer.weight_slots():
            weight = SmoothedWeight(name, layer, slot)
            if weight.inputs.pre_quant_scale is not None:
                yield weight


@torch.no_grad()
def fold_smoothing(
    model: nn.Module, dialect: Dialect, groups: Iterable[Iterable[str]], originals: Originals
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Give layers that read one tensor one `pre_quant_scale`, and fold it where the dialect does.

    Weights and norms change; `originals` keeps their values. Nothing is folded without certainty that the folded model
    computes the same but for rounding.

    Returns:
        (names of the layers whose factor is folded, a sentence for each reason why some are not).
    """
    smoothed = list(smoothed_weights(model))
    for weight in smoothed:
        weight.inputs.pre_quant_scale = weight.factor.float()
    weights = {weight.name: weight for weight in smoothed if not weight.slot.is_stacked}
    if not weights:
        return frozenset(), ()
    folds = {name: _folds_of(dialect, weight) for name, weight in weights.items()}
    fold = _Fold(model, weights, folds, originals, _shared_parameters(model))
    fold.into_linears()
    for group in groups:
        fold.average([weights[name] for name in group if name in weights and name not in fold.folded])
    fold.into_norms()
    return frozenset(fold.folded), tuple(fold.notes)


class _Fold:
    """One run over a model."""

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, SmoothedWeight],
        folds: Mapping[str, SmoothingFolds],
        originals: Originals,
        shared: set[int],
    ) -> None:
        self._model = model
        self._weights = weights
        self._folds = folds
        self._originals = originals
        self._shared = shared
        self.folded: set[str] = set()
        self.notes: list[str] = []

    def into_linears(self) -> None:
        """Fold factors of layers into the rows of the layers before them, in the classes that the dialect names."""
        for name, module in self._model.named_modules():
            for folded in {linear for folds in self._folds.values() for linear in folds.linears}:
                reader = f"{name}.{folded.reader}"
                if reader in self._weights and folded in self._folds[reader].linears:
                    self._into_rows(module, folded.classes, folded.maker, self._weights[reader])

    def _into_rows(
        self, owner: nn.Module, classes: Sequence[str], maker: str, reader: SmoothedWeight
    ) -> None:
        layer = owner.get_submodule(maker)
        if not any(name in type(owner).__name__ for name in classes) or not isinstance(layer, QuantModule):
            return
        factor, slot, bias = reader.factor, WeightSlot(), getattr(layer, "bias", None)
        smoothed = _smoothed(layer, slot)
        has_low_rank = layer.quantizers()[slot.quantizer].stages()[0].low_rank_down is not None
        if len(smoothed) != len(factor) or has_low_rank or not self._may_change(layer):
            return
        _set_weight(layer, slot, smoothed * factor[:, None], self._originals)
        if bias is not None:
            _set(bias, bias * factor, self._originals)
        self._forget(reader)

    def average(self, group: Sequence[SmoothedWeight]) -> None:
        """Give layers that read one tensor the mean of their factors."""
        if len({weight.format for weight in group}) != 1 or _equal_factors(group):
            return
        if not self._may_change(*(weight.layer for weight in group)):
            self.notes.append(
                f"{listed([w.name for w in group])} keep a pre_quant_scale each: a weight is shared with another "
                "layer, or offloaded"
            )
            return
        mean = torch.stack([weight.factor for weight in group]).mean(0)
        if any(weight.low_rank is not None for weight in group):
            _average_low_rank(group, mean, self._originals)
            return
        for weight in group:
            weight.resmooth(mean, self._originals)

    def into_norms(self) -> None:
        """Fold factors into the norms whose outputs nothing but these layers reads."""
        wanted = [n for n in self._weights if self._folds[n].norms and n not in self.folded]
        if not wanted:
            return
        norms = {name: module for name, module in self._model.named_modules() if _is_norm_like(module)}
        inputs = plugins().tiny_inputs(self._model)
        if inputs is None:
            self._keep(wanted, f"{_NOT_PROBED}: no plugin knows the model's inputs")
            return
        probe = SoleReaders(norms, {name: self._weights[name].layer for name in wanted})
        try:
            probe.watch(self._model, inputs)
        except torch.OutOfMemoryError:
            raise
        except FOREIGN_FAILURES as error:
            self._keep(wanted, f"{_NOT_PROBED}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return
        self._keep([name for name in wanted if name not in probe.called], f"{_NOT_PROBED}: they never ran")
        for name, norm in norms.items():
            if readers := probe.readers_of(name):
                reason = self._into_norm(name, norm, [self._weights[r] for r in readers], probe)
                if reason:
                    self._keep(readers, reason)

    def _into_norm(
        self, name: str, norm: nn.Module, readers: Sequence[SmoothedWeight], probe: SoleReaders
    ) -> str:
        """Fold, or return why not."""
        if name in probe.used_elsewhere:
            return f"something else reads what {name} makes, too"
        if not _equal_factors(readers):
            return f"the readers of {name} have several factors or formats"
        if not self._may_change(norm):
            return f"the weight of {name} is shared with another module, or offloaded"
        kind = norm_kind(norm)
        if kind is None:
            return f"{name} ({type(norm).__name__}) does not multiply by its weight or by 1 + its weight"
        weight, bias, factor = norm.get_parameter("weight"), getattr(norm, "bias", None), readers[0].factor
        scaled = weight * factor if kind == "weight" else (weight + 1.0) * factor - 1.0
        _set(weight, scaled, self._originals)
        if bias is not None:
            _set(bias, bias * factor, self._originals)
        for reader in readers:
            self._forget(reader)
        return ""

    def _forget(self, reader: SmoothedWeight) -> None:
        """Drop a factor that is folded; the weight keeps the values that go with it."""
        self.folded.add(reader.name)
        reader.inputs.pre_quant_scale = None

    def _keep(self, names: Sequence[str], reason: str) -> None:
        if names:
            self.notes.append(f"pre_quant_scale of {listed(names, 3)} is not folded into a norm: {reason}")

    def _may_change(self, *modules: nn.Module) -> bool:
        parameters = [p for module in modules for p in module.parameters(recurse=False)]
        return not any(id(p) in self._shared or p.is_meta for p in parameters)


def format_of(layer: QuantModule, slot: WeightSlot) -> LayerFormat | None:
    """Return the formats of a weight and its input as they are now; None when the weight is not quantized."""
    weight, inputs = (
        [stage.spec for stage in layer.quantizers()[q].stages() if stage.enabled and stage.spec is not None]
        for q in (slot.quantizer, slot.inputs)
    )
    if not weight:
        return None
    then = weight[1] if len(weight) > 1 else None
    is_scaled = layer.quantizers()[slot.inputs].stages()[0].pre_quant_scale is not None
    has_low_rank = layer.quantizers()[slot.quantizer].stages()[0].low_rank_down is not None
    smoothing: Literal["", "scaled", "low_rank"] = (
        "low_rank" if has_low_rank else "scaled" if is_scaled else ""
    )
    return LayerFormat(weight[0].unstacked(), inputs[0] if inputs else None, then, smoothing)


def _average_low_rank(weights: Sequence[SmoothedWeight], factor: Tensor, originals: Originals) -> None:
    """Give layers that read one tensor one factor and one `low_rank_down`, by an SVD of all their rows."""
    whole, dtype = [], factor.dtype
    corrections = [weight.low_rank for weight in weights if weight.low_rank is not None]
    for weight, (down, up) in zip(weights, corrections, strict=True):  # of equal formats all have one
        values = _smoothed(weight.layer, weight.slot).float() + up @ down
        whole.append(values * (weight.factor.float() / factor.float()))
    rows, rank = torch.cat(whole), len(corrections[0][0])
    left, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    down, up = right[:rank].float(), (left[:, :rank] * values[:rank]).float()
    rest = (rows - up @ down).to(dtype)
    sizes = [len(part) for part in whole]
    for weight, values, own_up in zip(weights, rest.split(sizes), up.split(sizes), strict=True):
        _set_weight(weight.layer, weight.slot, values, originals)
        stage = weight.layer.quantizers()[weight.slot.quantizer].stages()[0]
        stage.low_rank_down, stage.low_rank_up = down.to(dtype).float(), own_up.to(dtype).float()
        weight.inputs.pre_quant_scale = factor.float()


def _equal_factors(weights: Sequence[SmoothedWeight]) -> bool:
    return all(torch.equal(weight.factor, weights[0].factor) for weight in weights)


def _folds_of(dialect: Dialect, weight: SmoothedWeight) -> SmoothingFolds:
    return SmoothingFolds() if weight.format is None else dialect.smoothing_folds(weight.format)


def _smoothed(layer: QuantModule, slot: WeightSlot) -> Tensor:
    """Return a weight as its quantizer sees it [out, in]."""
    weight = layer.quantized_weights()[slot.quantizer].detach()
    return layer.quantizers()[slot.quantizer].stages()[0].scaled(weight)


def _set_weight(layer: QuantModule, slot: WeightSlot, values: Tensor, originals: Originals) -> None:
    """Give a weight the values [out, in] that its quantizer is to see; its maxima are collected again."""
    originals.keep(layer.get_parameter(slot.parameter))
    weight, quantizer = layer.quantized_weights()[slot.quantizer], layer.quantizers()[slot.quantizer]
    weight.copy_(values)
    quantizer.stages()[0].pre_quant_scale = None
    recollect(quantizer, weight)


def _set(parameter: nn.Parameter, values: Tensor, originals: Originals) -> None:
    originals.keep(parameter)
    parameter.copy_(values)


def _is_norm_like(module: nn.Module) -> bool:
    """Whether a module has a weight for each channel and nothing else that computes."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 1 and not list(module.children())


def _shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of parameters that lie under several names."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {key for key, count in counts.items() if count > 1}
