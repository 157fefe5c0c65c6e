"""What the view of a packed weight cannot do is refused: the operation, the tensor and the way out are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from helpers.packed_views import view_and_dense
from octavo.core.errors import ShapeError, UnsupportedError
from octavo.core.packed import PackedView
from octavo.core.packed.narrowing import narrow

REFUSED: dict[str, Callable[[PackedView], object]] = {
    "aten.add.Tensor": lambda view: view + 1,
    "aten.add_.Tensor": lambda view: view.add_(torch.ones(32, 64)),
    "aten.mul.Tensor": lambda view: torch.ones(32, 64) * view,
    "aten.sum.default": lambda view: view.sum(),
    "aten._to_copy.default": lambda view: view.to(torch.bfloat16),
    "aten.select.int": lambda view: view[0],
    "aten.cat.default": lambda view: torch.cat([view, view]),
    "aten.slice.Tensor": lambda view: view[::2],
    "aten.zero_.default": lambda view: view.zero_(),
    "aten.view.default": lambda view: view.view(64, 32),
    "aten.as_strided.default": lambda view: view.as_strided((2, 2), (1, 1)),
    "aten.new_zeros.default": lambda view: view.new_zeros((4,)),
    "aten.mm.default": lambda view: view @ torch.ones(64, 2),
    "aten.addmm.default": lambda view: torch.addmm(torch.ones(64), torch.ones(3, 32), view),
    "aten.copy_.default": lambda view: view.copy_(torch.ones(32, 64)),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_operations_are_named_with_the_tensor_and_the_way_out(operation: str) -> None:
    view, _ = view_and_dense("nvfp4")

    with pytest.raises(UnsupportedError) as error:
        REFUSED[operation](view)

    assert str(error.value) == (
        f"{operation} of a weight (32, 64) torch.float32 packed as e2m1 block{{-1:16}} e4m3·global dynamic is not "
        "supported; take its `.dequantize()`, or make the model's weights dense again with octavo.decompress(model); "
        "adapters over it are merged by octavo.merge_adapters(model)"
    )


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        (
            "int4 blocks",
            (1, 16, 32),
            r"\[16, 48\) of dim 1 .*int4 block\{-1:32\}: a block of 32 with one scale would be cut",
        ),
        ("fp8 square blocks", (0, 8, 8), r"\[8, 16\) of dim 0 .*: a block of 16 with one scale would be cut"),
        ("int3", (1, 0, 17), r"\[0, 17\) of dim 1 .*int3.*: a byte of codes would be cut"),
        ("int4, then fp8", (1, 0, 17), r"\[0, 17\) of dim 1 .*int4.*: a byte of codes would be cut"),
    ],
)
def test_cuts_through_blocks_and_bytes_are_refused(
    name: str, cut: tuple[int, int, int], message: str
) -> None:
    view, _ = view_and_dense(name)

    with pytest.raises(ShapeError, match=message):
        narrow(view.packed, *cut)
    with pytest.raises(
        UnsupportedError, match=rf"aten\.slice\.Tensor: elements {message}.*octavo\.decompress"
    ):
        view.narrow(*cut)


def test_transposed_views_are_not_cut() -> None:
    view, _ = view_and_dense("fp8")

    with pytest.raises(
        UnsupportedError, match=r"aten\.split\.Tensor of the transposed view of a weight \(64, 32\)"
    ):
        view.t().chunk(2)


def test_formats_that_differ_are_not_copied() -> None:
    view, _ = view_and_dense("fp8")
    other, _ = view_and_dense("int8 per channel")

    with pytest.raises(
        UnsupportedError, match=r"packed as int8 channel0 cannot be copied into .* packed as e4m3 tensor"
    ):
        view.copy_(other)


@pytest.mark.parametrize(
    "operation", [PackedView.dequantize, lambda view: torch.ones(1, 64) @ view.t(), lambda view: view[:2]]
)
def test_codes_that_are_elsewhere_are_asked_for(operation: Callable[[PackedView], object]) -> None:
    view, _ = view_and_dense("fp8")
    placeholder = torch.empty(0, dtype=torch.uint8)
    elsewhere = PackedView(replace(view.packed, payload=placeholder))  # type: ignore[type-var]

    assert elsewhere.shape == (32, 64)
    with pytest.raises(
        UnsupportedError,
        match=r"packed as e4m3 tensor: .*found a payload of shape \(0,\).*GatheredParameters",
    ):
        operation(elsewhere)
