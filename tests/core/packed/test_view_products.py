"""Products with the view of a packed weight are those with the dense one, and so are their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from helpers.packed_views import FLAT_NAMES, view_and_dense

pytestmark = pytest.mark.usefixtures("reference_kernels")  # bits of products are compared

PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w, b: linear(x, w),
    "linear with bias": lambda x, w, b: linear(x, w, b),
    "linear of a matrix": lambda x, w, b: linear(x[0], w, b),
    "matmul with t()": lambda x, w, b: x @ w.t(),
    "matmul with T": lambda x, w, b: x @ w.T,
    "mm with mT": lambda x, w, b: torch.mm(x[0], w.mT),
    "addmm": lambda x, w, b: torch.addmm(b, x[0], w.transpose(0, 1)),
    "of the weight itself": lambda x, w, b: x.reshape(-1, 32) @ w,
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", FLAT_NAMES)
def test_values_and_gradients_are_those_of_the_dense_weight(name: str, product: str) -> None:
    view, dense = view_and_dense(name)
    found, expected = [], []
    for weight, results in ((view, found), (dense, expected)):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, 64, generator=generator, requires_grad=True)
        bias = torch.randn(32, generator=generator, requires_grad=True)
        y = PRODUCTS[product](x, weight, bias)
        y.sin().sum().backward()
        results += [y, x.grad, bias.grad]

    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_backward_keeps_no_dense_copy() -> None:
    view, _ = view_and_dense("int4 blocks", torch.bfloat16)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True), view)

    assert [type(tensor).__name__ for tensor in saved] == ["PackedView"]
    assert saved[0].payload.data_ptr() == view.payload.data_ptr()


@pytest.mark.parametrize("name", ["nvfp4", "int4, then fp8"])
def test_compiles_as_one_graph(name: str) -> None:
    view, dense = view_and_dense(name)
    x = torch.randn(5, 64)

    compiled = torch.compile(lambda x, w: linear(x, w) + 1, fullgraph=True, backend="aot_eager")

    assert torch.equal(compiled(x, view), linear(x, dense) + 1)
