"""How tensors are cut into blocks: every element once, with the scale that the format says, however large."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantSpec
from octavo.core.formats.granularity import Stacked, keepdim_shape, unblocked
from octavo.kernels.triton.geometry import Geometry, geometry
from octavo.kernels.triton.launch import tile_of, view_of

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerToken(),
    PerChannel(0),
    PerChannel(1),
    PerChannel(-1),
    PerBlock(((-1, 4),)),
    PerBlock(((-1, 4), (-2, 3))),
    PerBlock(((-2, 3),)),
]
SHAPES = [(1, 1), (5, 9), (4, 8), (2, 3, 7), (3, 1, 2, 5)]


def scales_by_kernel(cut: Geometry, num_elements: int) -> np.ndarray:
    """Return which scale each element of the flat tensor gets, walking the blocks as `device.tile` does."""
    view, found = view_of(cut), np.full(num_elements, -1)
    for block in range(view.num_blocks):
        outer, rest = divmod(block, view.row_blocks * view.col_blocks)
        row_block, col_block = divmod(rest, view.col_blocks)
        scale = outer * view.outer_stride + row_block * view.row_stride + col_block * view.col_stride
        for row in range(row_block * cut.block_rows, min((row_block + 1) * cut.block_rows, view.rows)):
            start = (outer * view.rows + row) * view.cols
            cols = slice(
                start + col_block * cut.block_cols, start + min((col_block + 1) * cut.block_cols, view.cols)
            )
            assert (found[cols] == -1).all(), "an element in two blocks"
            found[cols] = scale
    return found


def scales_by_format(granularity: Granularity, shape: tuple[int, ...]) -> np.ndarray:
    """Return the same by the blocked view of the reference."""
    numbers = torch.arange(int(np.prod(granularity.scale_shape(shape))), dtype=torch.float64)
    view = granularity.blocked(torch.zeros(shape, dtype=torch.float64))
    spread = view + numbers.reshape(keepdim_shape(granularity, shape))
    return unblocked(spread, granularity, shape).flatten().numpy()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_every_element_has_its_scale(granularity: Granularity, whole: bool) -> None:
    for shape in SHAPES:
        cut = geometry(granularity, shape, 8, whole)
        assert cut is not None
        found = scales_by_kernel(cut, int(np.prod(shape)))
        assert (found == scales_by_format(granularity, shape)).all(), shape
        if cut.owns_scales:
            assert cut.num_blocks == len(set(found))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_every_element_of_a_stack_has_its_scale(granularity: Granularity) -> None:
    if isinstance(granularity, PerChannel) and granularity.axis == 1:
        return
    stacked = Stacked(granularity)  # type: ignore[arg-type]
    cut = geometry(stacked, (3, 5, 9), 8)
    assert cut is not None
    assert (scales_by_kernel(cut, 135) == scales_by_format(stacked, (3, 5, 9))).all()


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerBlock(((-3, 2),)), (4, 4, 4)),
        (PerBlock(((-2, 2),)), (4,)),
        (PerBlock(((-1, 256), (-2, 128))), (512, 512)),
        (PerChannel(2), (4, 4)),
        (Stacked(PerChannel(1)), (2, 3, 4, 5)),
        (Stacked(PerTensor()), (4,)),
    ],
)
def test_what_cannot_be_cut(granularity: Granularity, shape: tuple[int, ...]) -> None:
    assert geometry(granularity, shape, 4096) is None


@pytest.mark.parametrize("shape", [(2**16, 2**15), (1, 2**31), (2**31, 1), (2**20, 4097)])
@pytest.mark.parametrize(
    "spec", [QuantSpec("int8"), QuantSpec("int8", PerToken(), dynamic=True), QuantSpec("int8", PerBlock(((-1, 16),)))]
)  # fmt: skip
def test_large_tensors_have_wide_offsets_and_a_grid_that_cuda_takes(
    spec: QuantSpec, shape: tuple[int, int]
) -> None:
    cut = geometry(spec.granularity, shape, 4096, whole=spec.dynamic)
    assert cut is not None
    tile = tile_of(cut, 4096)
    assert tile.is_wide
    assert -(-cut.num_blocks // tile.blocks) <= 2**31 - 1
    assert tile.blocks * tile.padded_rows * tile.padded_cols <= 16384


def test_offsets_are_narrow_only_where_those_behind_the_end_fit_32_bits() -> None:
    largest = geometry(PerTensor(), (1, 2**31 - 2**20 - 1), 8192)
    assert largest is not None
    tile = tile_of(largest, 8192)
    assert not tile.is_wide
    programs = -(-largest.num_blocks // tile.blocks)
    assert programs * tile.blocks * tile.padded_cols < 2**31
