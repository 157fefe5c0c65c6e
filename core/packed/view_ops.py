"""What can be done with a `PackedView` as it is packed: copied, moved, cut, transposed, and sent between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ShapeError, UnsupportedError
from octavo.core.formats.packing import packed_length
from octavo.core.packed.narrowing import narrow
from octavo.core.packed.packed_chain import PackedChain
from octavo.core.packed.packed_tensor import PackedTensor
from octavo.core.packed.packed_view import PackedView, implements
from octavo.core.packed.view_sharding import gathered, row_bytes

aten = torch.ops.aten


@implements("aten.detach.default", "aten.alias.default")
def _same(function: Any, view: PackedView) -> PackedView:
    return view.mapped(function)


@implements("aten.clone.default")
def _clone(function: Any, view: PackedView, memory_format: torch.memory_format | None = None) -> PackedView:
    return view.mapped(torch.clone)


@implements("aten._to_copy.default")
def _to_copy(function: Any, view: PackedView, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """Move codes and scales; another dtype would be another tensor, of other values."""
    if dtype not in (None, view.dtype):
        return NotImplemented
    options.pop("memory_format", None)
    return view.mapped(lambda part: aten._to_copy(part, **options))


@implements("aten.copy_.default")
def _copy(function: Any, view: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    if not (isinstance(view, PackedView) and isinstance(source, PackedView)):
        return NotImplemented
    if view.context() != source.context():
        raise UnsupportedError(
            f"{source.described()} cannot be copied into {view.described()}: both must be packed alike"
        )
    theirs = source.parts()
    for name, part in view.parts().items():
        part.copy_(theirs[name], non_blocking)
    return view


@implements("aten.slice.Tensor")
def _slice(
    function: Any,
    view: PackedView,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    first, last, _ = slice(start, end).indices(view.shape[dim])
    return _parts(function, view, dim, [(first, max(0, last - first))])[0] if step == 1 else NotImplemented


@implements("aten.split.Tensor")
def _split(function: Any, view: PackedView, size: int, dim: int = 0) -> list[PackedView]:
    length = view.shape[dim]
    return _parts(
        function, view, dim, [(start, min(size, length - start)) for start in range(0, length, size)]
    )


@implements("aten.split_with_sizes.default")
def _split_with_sizes(
    function: Any, view: PackedView, sizes: Sequence[int], dim: int = 0
) -> list[PackedView]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return _parts(function, view, dim, list(zip(starts, sizes, strict=True)))


def _parts(function: Any, view: PackedView, dim: int, bounds: Sequence[tuple[int, int]]) -> list[PackedView]:
    """Return the parts (first element, number of elements) along `dim`."""
    view.check_present(str(function))
    if view.arrangement != "plain":
        raise UnsupportedError(
            f"{function} of the {view.arrangement} view of {view.described()}: cut it as it is packed"
        )
    try:
        return [PackedView(narrow(view.packed, dim % view.dim(), *bound)) for bound in bounds]
    except ShapeError as error:
        raise UnsupportedError(f"{function}: {error}") from error


@implements("aten.view.default", "aten._unsafe_view.default")
def _view(function: Any, view: PackedView, size: Sequence[int]) -> Any:
    """Serve the shape that the view has, its packed shape, and one dim."""
    size = tuple(size)
    if view.arrangement == "transposed":
        return NotImplemented
    if size in (view.packed_shape, (-1, *view.packed_shape[1:])):
        return view.mapped(aten.alias, arrangement="plain")
    return view.mapped(aten.alias, arrangement="flat") if size in ((-1,), (view.numel(),)) else NotImplemented


@implements("aten.as_strided.default")
def _as_strided(
    function: Any, view: PackedView, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Any:
    same = (tuple(size), tuple(stride), offset or 0) == (tuple(view.shape), view.stride(), 0)
    return view.mapped(aten.alias) if same else NotImplemented


@implements("aten.new_zeros.default", "aten.new_empty.default")
def _new(function: Any, view: PackedView, size: Sequence[int], **options: Any) -> Any:
    """Return codes and scales of another size, in the same format."""
    if options.pop("dtype", None) not in (None, view.dtype) or len(size) != len(view.packed_shape):
        return NotImplemented

    def new(part: Tensor, shape: Sequence[int]) -> Tensor:
        made: Tensor = function(part, shape, **options)
        return made

    size, spec, then = tuple(size), view.spec, view.then
    payload = new(view.payload, (*size[:-1], packed_length(size[-1], spec.element_type.bits)))
    scale = new(view.scale, spec.granularity.scale_shape(size))
    global_scale = view.global_scale
    if global_scale is not None:
        global_scale = new(global_scale, spec.state_shape("global_amax", size))
    first = PackedTensor(payload, scale, global_scale, spec, size, view.dtype)
    if then is None:
        return PackedView(first)
    shapes = [then.state_shape(name, size) for name in then.state]
    state = tuple(new(part, shape) for part, shape in zip(view.then_state, shapes, strict=True))
    return PackedView(PackedChain(first, then, state))


@implements("aten.t.default")
def _t(function: Any, view: PackedView) -> Any:
    if view.arrangement == "flat" or view.dim() != 2:
        return NotImplemented
    return view.mapped(aten.alias, arrangement="plain" if view.arrangement == "transposed" else "transposed")


@implements("aten.transpose.int")
def _transpose(function: Any, view: PackedView, dim: int, other: int) -> Any:
    return _t(function, view) if {dim % view.dim(), other % view.dim()} == {0, 1} else NotImplemented


@implements("aten.permute.default")
def _permute(function: Any, view: PackedView, dims: Sequence[int]) -> Any:
    return _t(function, view) if [dim % view.dim() for dim in dims] == [1, 0] else NotImplemented


@implements("_c10d_functional.all_gather_into_tensor.default")
def _all_gather(function: Any, view: PackedView, group_size: int, group_name: str) -> PackedView:
    stored = {name: function(part, group_size, group_name) for name, part in row_bytes(view).items()}
    return gathered(view, stored, view.packed_shape[0] * group_size)


@implements("_c10d_functional.wait_tensor.default", "_c10d_functional._wrap_tensor_autograd.default")
def _wait(function: Any, view: PackedView) -> PackedView:
    return view.mapped(function)
