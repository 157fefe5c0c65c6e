"""How far a tensor of a converted checkpoint is from the one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.core.conversion.row_parts import row_parts
from octavo.core.formats import QuantSpec
from octavo.core.formats.granularity import keepdim_shape
from octavo.core.formats.packing import unpack
from octavo.core.formats.rounding import decode, spacing
from octavo.core.formats.scales import step_from_stored
from octavo.core.packed import PackedTensor


@dataclass(frozen=True)
class Change:
    """What a dialect could not hold exactly of one tensor.

    Attributes:
        name: The tensor, or the activation's quantizer.
        codes: Share of its codes that changed.
        steps: Largest change of a value, in steps between codes.
        scales: Largest change of a scale, as a share of it.
        num_codes: Number of its codes; 0 for an activation, which has scales only.
        rule: How an activation will be rounded where that is another rule, else empty.
    """

    name: str
    codes: float
    steps: float
    scales: float
    num_codes: int = 0
    rule: str = ""

    def __str__(self) -> str:
        """Return a sentence."""
        if self.rule:
            return f"{self.name}: rounded as {self.rule}"
        if not self.num_codes:
            return f"{self.name}: its scale by {self.scales:.2g}"
        return (
            f"{self.name}: {self.codes:.2%} of its codes, values by {self.steps:.2g} steps at most, "
            f"scales by {self.scales:.2g} at most"
        )


def change_of(name: str, before: PackedTensor, after: PackedTensor) -> Change:
    """Return how `after` differs from `before`, which has the same shape, elements and blocks."""
    changed, steps = 0, 0.0
    for old, new in zip(row_parts(before), row_parts(after), strict=True):
        old_codes, new_codes = _codes(old), _codes(new)
        changed += int((old_codes != new_codes).sum())
        steps = max(steps, _steps_moved(old_codes, new_codes, _step(old) / _step(new), new.spec))
    num_codes = math.prod(after.shape)
    scales = relative_change(_step(before), _step(after))
    return Change(name, changed / max(num_codes, 1), steps, scales, num_codes)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return the largest change among numbers, as a share of them; none of them is 0."""
    return (after / before - 1).abs().max().item() if before.numel() else 0.0


def share_of_codes(changes: Sequence[Change], num_codes: int) -> float:
    """Return the share of all `num_codes` codes of a checkpoint that changed."""
    changed = sum(change.codes * change.num_codes for change in changes)
    return changed / num_codes if num_codes else 0.0


def _codes(packed: PackedTensor) -> Tensor:
    """Return the codes as the numbers they stand for; zeros are equal whatever their sign."""
    element = packed.spec.element_type
    return decode(unpack(packed.payload, element.bits, packed.shape[-1]), element)


def _step(packed: PackedTensor) -> Tensor:
    return step_from_stored(packed.scale, packed.global_scale, packed.spec)


def _steps_moved(old: Tensor, new: Tensor, ratio: Tensor, spec: QuantSpec) -> float:
    """Return how far a value moved at most, in distances of codes; `ratio` is of old scales to new."""
    before, after = spec.granularity.blocked(old), spec.granularity.blocked(new)
    exact = before * ratio.reshape(keepdim_shape(spec.granularity, old.shape))
    moved = (exact - after).abs() / spacing(after.contiguous(), spec.element_type)
    return moved.max().item() if moved.numel() else 0.0
