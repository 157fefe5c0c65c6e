"""How a `PackedView` is put together from ranks that have some of its rows each.

The parts that are cut where rows are travel as bytes. What belongs to every row (the scale of a whole tensor, say) is
on every rank, and is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.packed.narrowing import scale_dim
from octavo.core.packed.stored_bytes import from_bytes, to_bytes

if TYPE_CHECKING:
    from octavo.core.packed.packed_view import PackedView


def row_bytes(view: PackedView) -> dict[str, Tensor]:
    """Return the bytes of the parts that are cut where rows are, by name: uint8 [rows, …, itemsize]."""
    cut = {"payload", *_cut_state("scale", "global_scale", view.spec, view)}
    if view.then is not None:
        cut |= _cut_state("then_amax", "then_global_amax", view.then, view)
    return {name: to_bytes(part) for name, part in view.parts().items() if name in cut}


def gathered(view: PackedView, stored: Mapping[str, Tensor], num_rows: int) -> PackedView:
    """Return the view of all rows, from all ranks' `row_bytes` and from what `view` has for every row."""
    full = view.parts()
    for name, part in stored.items():
        full[name] = from_bytes(part, full[name].dtype)
    return view.rebuilt(full, {**view.context(), "shape": (num_rows, *view.packed_shape[1:])})


def _cut_state(scale: str, global_scale: str, spec: QuantSpec, view: PackedView) -> set[str]:
    """Return which of the names of a format's two levels of scales are cut where rows are."""
    by_row = scale_dim(spec.granularity, len(view.packed_shape), 0) is not None
    return ({scale} if by_row else set()) | ({global_scale} if spec.is_stacked else set())
