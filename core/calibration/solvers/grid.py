"""Grid: the values that a quantized weight can take, once its scales are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.core.formats import ElementType, QuantSpec, compute_amax
from octavo.core.formats.granularity import keepdim_shape, unblocked
from octavo.core.formats.rounding import round_to_grid
from octavo.core.formats.scales import scales_from_amax


@dataclass(frozen=True, eq=False)
class Grid:
    """Codes times steps, for a weight [out, in].

    Attributes:
        step: fp32 [out, in], as a view where scales are shared: the value of code 1. Negative where a scale is.
        element: Element type of the codes.
    """

    step: Tensor
    element: ElementType

    @classmethod
    def of(cls, state: Mapping[str, Tensor], spec: QuantSpec, shape: tuple[int, int]) -> Grid:
        """Return the grid of a static format.

        Args:
            state: Calibrated tensors by name, as `TensorQuantizer.named_state` returns them.
            spec: A format with static scales that is not stacked.
            shape: Of the weight, [out, in].
        """
        scales = scales_from_amax(state["amax"], state.get("global_amax"), spec)
        step = scales.step.reshape(keepdim_shape(spec.granularity, shape))
        blocked = spec.granularity.blocked(torch.empty(shape, device=step.device))
        return cls(unblocked(step.expand_as(blocked), spec.granularity, shape), spec.element_type)

    def codes(self, weight: Tensor, columns: slice = slice(None)) -> Tensor:
        """Return the nearest codes of `weight` [out, n], fp32 grid values, where `columns` are n of the grid's."""
        return round_to_grid(weight / self.step[:, columns], self.element)

    def round(self, weight: Tensor, columns: slice = slice(None)) -> Tensor:
        """Return the nearest values of `weight` [out, n], where `columns` are n of the grid's."""
        step = self.step[:, columns]
        return round_to_grid(weight / step, self.element) * step


def static(spec: QuantSpec) -> QuantSpec:
    """Return the format with scales that are calibrated, not computed from the values at hand."""
    return replace(spec, dynamic=False)


def amax_state(weight: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
    """Return the state of `static(spec)` that rounds `weight` to nearest: its largest magnitudes.

    Args:
        weight: [out, in], any float dtype.
        spec: Its format, not stacked.
    """
    state = {"amax": compute_amax(weight, spec)}
    if spec.global_max is not None:
        state["global_amax"] = state["amax"].amax()
    return state
