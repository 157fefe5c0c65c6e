"""WeightProblem: one weight whose scales or codes an algorithm chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.calibration.statistics import InputStatistics
from octavo.core.errors import CalibrationError
from octavo.core.formats import QuantSpec
from octavo.core.model.sharded import is_sharded, whole_shape
from octavo.core.modules import QuantModule, WeightSlot
from octavo.core.quantizers import TensorQuantizer


@dataclass(frozen=True, eq=False)
class WeightProblem:
    """A weight [out, in] with one format, and what is known of its input.

    Attributes:
        layer_name: Name of its layer in the model.
        layer: The layer.
        slot: Which of the layer's parameters.
        index: Which of a stack of weights; None for a weight that is not stacked.
        statistics: Of its input, before `pre_quant_scale`; None when none were asked for.
        fallback: What these statistics stand in for, where they are not the weight's own as they should be.
    """

    layer_name: str
    layer: QuantModule
    slot: WeightSlot
    index: int | None
    statistics: InputStatistics | None
    fallback: str | None = None

    @property
    def name(self) -> str:
        """The parameter's name in the model, with the index of a stacked weight."""
        name = f"{self.layer_name}.{self.slot.parameter}".removeprefix(".")
        return name if self.index is None else f"{name}[{self.index}]"

    @property
    def quantizer(self) -> TensorQuantizer:
        """The weight's quantizer, which all weights of a stack share."""
        return self.layer.quantizers()[self.slot.quantizer].stages()[0]

    @property
    def has_input(self) -> bool:
        """Whether the weight is multiplied with a tensor; the rows of an embedding are not."""
        return self.slot.inputs in self.layer.quantizers()

    @property
    def inputs(self) -> TensorQuantizer | None:
        """The input's quantizer where it is on and a single one."""
        if not self.has_input:
            return None
        stages = self.layer.quantizers()[self.slot.inputs].stages()
        return stages[0] if len(stages) == 1 and stages[0].enabled and stages[0].spec is not None else None

    @property
    def spec(self) -> QuantSpec:
        """The weight's format; that of each, where it is a stack."""
        assert self.quantizer.spec is not None  # noqa: S101 (problems are made of quantizers that are on)
        return self.quantizer.spec.unstacked()

    def parameter(self) -> Tensor:
        """Return the weight as it is, [out, in] in its dtype.

        Raises:
            CalibrationError: it is offloaded, or divided among ranks.
        """
        weight = self.layer.quantized_weights()[self.slot.quantizer]
        if is_sharded(weight):
            raise CalibrationError(
                f"{self.name} {list(whole_shape(weight))} is divided among ranks (FSDP2, ZeRO-3), and was read without "
                "gathering it; calibrate before the model is sharded, or use the algorithm 'max' or 'mse'"
            )
        weight = weight.detach()
        if weight.is_meta:
            raise CalibrationError(
                f"{self.name} is offloaded, and this algorithm needs weights in memory; load the model without "
                "offloading, or use the algorithm 'max'"
            )
        return weight if self.index is None else weight[self.index]

    def smoothed_parameter(self) -> Tensor:
        """Return the weight as its quantizer sees it, [out, in] in its dtype: times its `pre_quant_scale`."""
        return self.quantizer.scaled(self.parameter())

    def weight(self) -> Tensor:
        """Return the weight as its quantizer sees it, fp32 [out, in]: times its `pre_quant_scale`."""
        return self.smoothed_parameter().float()

    def gram(self) -> Tensor:
        """Return XᵀX of the input as the weight sees it, fp32 [in, in]: times the input's `pre_quant_scale`."""
        assert self.statistics is not None  # noqa: S101 (the algorithm's needs asked for them)
        scale, gram = self.input_scale(), self.statistics.gram()
        return gram if scale is None else gram * scale * scale[:, None]

    def input_product(self) -> InputProduct:
        """Return XᵀX of the input as the weight sees it: times the input's `pre_quant_scale`."""
        assert self.statistics is not None  # noqa: S101 (the algorithm's needs asked for them)
        scale, product = self.input_scale(), self.statistics.product()
        return product if scale is None else product.scaled(scale)

    def held_tokens(self) -> Tensor:
        """Return a few tokens of the input as the weight sees them, [n, in]: times `pre_quant_scale`."""
        assert self.statistics is not None  # noqa: S101
        scale, tokens = self.input_scale(), self.statistics.held.tokens()
        return tokens if scale is None or not len(tokens) else tokens * scale.to(tokens.dtype)

    def rounded_tokens(self) -> Tensor:
        """Return the held tokens as the weight sees them once the input's quantizers round, fp32 [n, in]."""
        quantizer = self.layer.quantizers()[self.slot.inputs]
        tokens = self.held_tokens().float()
        for stage in quantizer.stages():
            tokens = ops.operand(tokens, stage.active_state(), stage.active_key, stage.range_mask)
        return tokens

    def state(self) -> dict[str, Tensor]:
        """Return the state of `static(spec)`: the quantizer's own, or for a dynamic format that of its maxima.

        The second-level scale of a dynamic format is the quantizer's own, which fused layers may share.
        """
        own = {name: self._own(tensor) for name, tensor in self.quantizer.named_state().items()}
        return own if "amax" in own else {**amax_state(self.weight(), self.spec), **own}

    def grid(self) -> Grid:
        """Return the values that the weight can take with `state()`."""
        weight = self.weight()
        return Grid.of(self.state(), static(self.spec), (weight.shape[0], weight.shape[1]))

    def rounded(self) -> Tensor:
        """Return the weight as it is rounded now, fp32 [out, in]."""
        return self.grid().round(self.weight())

    @torch.no_grad()
    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the weight these scales; its format becomes static, that of all weights of a stack with it."""
        quantizer = self.quantizer
        assert quantizer.spec is not None  # noqa: S101
        if quantizer.spec.dynamic:
            everything = AmaxCollector(static(quantizer.spec))
            weight = self.layer.quantized_weights()[self.slot.quantizer].detach()
            everything.collect(quantizer, quantizer.scaled(weight))
            found = everything.state() or {}
            quantizer.make_static(**{**found, **quantizer.named_state()})
        if self.index is None:
            quantizer.set_state(**state)
            return
        for name, tensor in quantizer.named_state().items():
            tensor[self.index].copy_(state[name])

    def input_scale(self) -> Tensor | None:
        """Return the input's `pre_quant_scale`, fp32 [in], or None."""
        scale = self.layer.quantizers()[self.slot.inputs].stages()[0].pre_quant_scale
        return None if scale is None else scale.float()

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor if self.index is None else tensor[self.index]
