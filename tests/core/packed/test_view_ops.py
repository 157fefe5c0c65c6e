"""The view of a packed weight: it looks like the dense tensor, and is copied, cut and arranged as codes and scales."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.packed_views import ALL_NAMES, FLAT_NAMES, view_and_dense
from octavo.core.packed import PackedView


@pytest.mark.parametrize("name", ALL_NAMES)
def test_looks_like_the_dense_tensor(name: str) -> None:
    view, dense = view_and_dense(name, torch.bfloat16)

    for like in ("shape", "dtype", "device", "requires_grad"):
        assert getattr(view, like) == getattr(dense, like)
    assert view.stride() == dense.stride()
    assert view.numel() == dense.numel()
    assert torch.equal(view.dequantize(), dense)
    assert view.dequantize(torch.float32).dtype == torch.float32


COPIES: dict[str, Callable[[PackedView], Tensor]] = {
    "clone": lambda view: view.clone(),
    "deepcopy": copy.deepcopy,
    "to": lambda view: view.to("cpu", copy=True),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_copies_have_codes_of_their_own(name: str, how: str) -> None:
    view, dense = view_and_dense(name)

    made = COPIES[how](view)

    assert isinstance(made, PackedView)
    assert torch.equal(made.dequantize(), dense)
    for part, original in zip(made.parts().values(), view.parts().values(), strict=True):
        assert part.data_ptr() != original.data_ptr()


@pytest.mark.parametrize("same", [lambda v: v.detach(), lambda v: v.data, lambda v: v.view(-1).view(v.shape)])
def test_what_copies_nothing_shares_codes(same: Callable[[PackedView], PackedView]) -> None:
    view, dense = view_and_dense("nvfp4")

    made = same(view)

    assert isinstance(made, PackedView)
    assert made.payload.data_ptr() == view.payload.data_ptr()
    assert torch.equal(made.dequantize(), dense)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_values_are_copied_into_another_view(name: str) -> None:
    view, dense = view_and_dense(name)
    other, _ = view_and_dense(name, seed=1)
    assert not torch.equal(other.dequantize(), dense)

    other.copy_(view)

    assert torch.equal(other.dequantize(), dense)


@pytest.mark.parametrize("name", FLAT_NAMES)
def test_new_ones_of_another_size_have_its_parts(name: str) -> None:
    view, _ = view_and_dense(name)

    new = view.new_zeros((48, 64))

    assert new.shape == (48, 64)
    assert new.spec == view.spec
    assert new.packed_shape == (48, 64)
    new.narrow(0, 0, 32).narrow(0, 0, 16).copy_(view.narrow(0, 16, 16))
    assert torch.equal(new.narrow(0, 0, 16).payload, view.payload[16:])
    assert not new.payload[16:].any()


@pytest.mark.parametrize("name", FLAT_NAMES)
def test_chunks_along_rows_are_those_of_the_dense_tensor(name: str) -> None:
    view, dense = view_and_dense(name)

    chunks = view.chunk(2)

    assert [chunk.shape for chunk in chunks] == [(16, 64), (16, 64)]
    for chunk, expected in zip(chunks, dense.chunk(2), strict=True):
        assert torch.equal(chunk.dequantize(), expected)
    assert chunks[1].payload.data_ptr() == view.payload[16:].data_ptr(), "a chunk is a view"


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_whole_blocks_are_cut_along_any_dim(name: str, dim: int) -> None:
    view, dense = view_and_dense(name)
    half = view.shape[dim] // 2

    for part, expected in zip(view.split([half, half], dim), dense.split([half, half], dim), strict=True):
        assert torch.equal(part.dequantize(), expected)
    assert torch.equal(view.narrow(dim, half, half).dequantize(), dense.narrow(dim, half, half))


def test_flat_view_and_transposed_view_show_what_they_should() -> None:
    view, dense = view_and_dense("int4 blocks")

    assert view.view(-1).shape == (2048,)
    assert torch.equal(view.view(-1).dequantize(), dense.view(-1))
    assert view.t().stride() == dense.t().stride()
    assert torch.equal(view.t().dequantize(), dense.t())
    assert torch.equal(view.t().t().dequantize(), dense)
