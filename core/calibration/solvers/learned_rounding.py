"""A weight whose rounding and ranges are trained, by gradients that pass the rounding straight through.

After AutoRound (Cheng et al., arXiv:2309.05516), with two differences. Training starts from any weight that rounds to
the codes of a cheaper algorithm, for example what GPTQ had made of each column when it rounded it. And offsets are
not bounded to half a step: sign descent bounds how far they get by its learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid
from octavo.core.errors import UnsupportedError
from octavo.core.formats import ElementType, QuantSpec
from octavo.core.formats.granularity import keepdim_shape, unblocked
from octavo.core.formats.rounding import round_to_grid
from octavo.core.formats.scales import Scales, scales_from_amax


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A weight and the static scales that it is rounded to nearest with: where training starts, and what it yields.

    Attributes:
        weight: [out, in], any float dtype. A start holds values before rounding: where in its cell a value lies
            says how soon it leaves it. Values on the grid are far from leaving: see `unrounded`. As a result of
            training it lies on the grid.
        state: Calibrated tensors of the format, as `TensorQuantizer.named_state` returns them.
        spec: The format, with static scales and not stacked.
    """

    weight: Tensor
    state: Mapping[str, Tensor]
    spec: QuantSpec


@torch.no_grad()
def unrounded(rounded: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Return values near `weight` that round to `rounded`: a start from codes that another algorithm chose.

    Where `weight` itself rounds to another code, the distance to it is halved until it does not (four times, then
    the value stays on the grid).

    Args:
        rounded: fp32 [out, in], values of `grid`.
        weight: fp32 [out, in], what was rounded.
        grid: The values that can be taken.
    """
    codes = grid.codes(rounded)
    pull = weight - rounded
    for _ in range(4):
        pull = torch.where(grid.codes(rounded + pull) == codes, pull, pull / 2)
    return torch.where(grid.codes(rounded + pull) == codes, rounded + pull, rounded)


class LearnedRounding:
    """The trained form of one `RoundedWeight`: its values before rounding, and a factor for each range.

    Args:
        start: Where training starts; its tensors are not changed.

    Attributes:
        codes: fp32 leaf, blocked view of [out, in]: values before rounding, in steps of the start.
        ranges: fp32 leaf that broadcasts over it: factors of `amax`, 1 at the start; None with e8m0 scales, which
            are powers of two and stay as they are.

    Raises:
        UnsupportedError: the format is dynamic or stacked, so that no scale of its own belongs to the weight.
    """

    ranges: Tensor | None

    def __init__(self, start: RoundedWeight) -> None:
        if start.spec.dynamic or start.spec.is_stacked:
            raise UnsupportedError(
                f"rounding to {start.spec} cannot be learned: expected static scales of one weight; "
                "use solvers.grid.static, and one weight of a stack at a time"
            )
        self._start = start
        self._keepdim = keepdim_shape(start.spec.granularity, start.weight.shape)
        scales = self._scales(start.state["amax"])
        self._step = scales.step.reshape(self._keepdim)
        blocked = start.spec.granularity.blocked(start.weight.detach().float())
        in_codes = (
            blocked / self._step
            if scales.inverse is None
            else blocked * scales.inverse.reshape(self._keepdim)
        )
        self.codes = in_codes.requires_grad_()
        learns = start.spec.scale != "e8m0"
        self.ranges = torch.ones_like(self._step).requires_grad_() if learns else None

    def value(self) -> Tensor:
        """Return the rounded weight, fp32 [out, in], with straight-through gradients for `codes` and `ranges`.

        A code's gradient is that of its value while it does not saturate, and none beyond; a range's is that of the
        rounding error, as in LSQ (Esser et al., arXiv:1902.08153).
        """
        spec = self._start.spec
        step = self._scales(self._amax()).step.reshape(self._keepdim)
        rounded = cast(Tensor, _Round.apply(self.codes, self.ranges, self._step, step, spec.element_type))  # type: ignore[no-untyped-call]
        return unblocked(rounded, spec.granularity, self._start.weight.shape)

    @torch.no_grad()
    def result(self) -> RoundedWeight:
        """Return the scales and, in the start's dtype, the weight on their grid."""
        weight = self.value().to(self._start.weight.dtype)
        return RoundedWeight(weight, {**self._start.state, "amax": self._amax()}, self._start.spec)

    def _amax(self) -> Tensor:
        amax = self._start.state["amax"]
        return amax if self.ranges is None else amax * self.ranges.detach().reshape(amax.shape)

    def _scales(self, amax: Tensor) -> Scales:
        return scales_from_amax(amax, self._start.state.get("global_amax"), self._start.spec)


class _Round(torch.autograd.Function):
    """Values of `codes`, in units of `start`, on the grid of `step`, which is `start · ranges` in the scales' type."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, ranges: Tensor | None, start: Tensor, step: Tensor, element: ElementType
    ) -> Tensor:
        exact = codes / (step / start)
        grid = round_to_grid(exact, element)
        # Half a step beyond the range still rounds into it.
        inside = (exact > element.min - 0.5) & (exact < element.max + 0.5)
        ctx.save_for_backward(exact, grid, inside, start)
        return grid * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exact, grid, inside, start = ctx.saved_tensors
        grad = grads[0] * start
        inner = grad * inside
        ranges = None
        if ctx.needs_input_grad[1]:
            shared = [d for d, n in enumerate(start.shape) if n != grad.shape[d]]
            ranges = grad * grid - inner * exact
            ranges = ranges.sum(shared, keepdim=True) if shared else ranges
        return inner, ranges, None, None, None
