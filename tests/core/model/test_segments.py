"""RowSegments: `split` hands out the rows that a layout says, `join` puts them back, of whatever follows the rows."""

from __future__ import annotations

import pytest
import torch

from octavo.core.errors import ShapeError
from octavo.core.model.segments import RowSegments

GROUPED = RowSegments({"attention.q": 8, "attention.k": 4, "attention.v": 4})
INTERLEAVED = RowSegments({"attention.q": 4, "attention.k": 2, "attention.v": 2}, groups=3)


def test_rows_of_one_group_follow_one_another() -> None:
    assert GROUPED.total_rows == 16
    assert GROUPED.index("attention.k").tolist() == [8, 9, 10, 11]


def test_rows_of_groups_take_turns() -> None:
    assert (INTERLEAVED.total_rows, INTERLEAVED.num_rows("attention.q")) == (24, 12)
    assert INTERLEAVED.index("attention.q").tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert INTERLEAVED.index("attention.v").tolist() == [6, 7, 14, 15, 22, 23]


@pytest.mark.parametrize("segments", [GROUPED, INTERLEAVED], ids=["one group", "interleaved"])
@pytest.mark.parametrize(
    ("shape", "dim", "block"),
    [((1, 6), 0, 1), ((1,), 0, 1), ((1, 1), 0, 1), ((3, 1), -1, 1), ((1, 5), 0, 2), ((1, 1, 5, 1), 0, 2)],
    ids=["weight", "bias", "row scales", "transposed weight", "block scales", "block scales with ones"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float8_e4m3fn])
def test_join_undoes_split(
    segments: RowSegments, shape: tuple[int, ...], dim: int, block: int, dtype: torch.dtype
) -> None:
    sizes = list(shape)
    sizes[dim] = segments.total_rows // block
    tensor = torch.arange(torch.Size(sizes).numel(), dtype=torch.uint8).view(sizes).view(dtype) if (
        dtype.itemsize == 1
    ) else torch.randn(sizes)  # fmt: skip

    parts = segments.split(tensor, dim, block)

    for role, part in parts.items():
        entries = segments.index(role)[::block] // block
        assert torch.equal(bits(part), bits(tensor).index_select(dim, entries))
    assert torch.equal(bits(segments.join(parts, dim, block)), bits(tensor))


def test_a_tensor_of_another_size_is_refused() -> None:
    message = r"a tensor of shape \[12, 4\] has 12 entries along dim 0, 24 rows in blocks of 1 need 24"
    with pytest.raises(ShapeError, match=message):
        INTERLEAVED.split(torch.zeros(12, 4))


def test_a_scale_of_the_whole_tensor_has_no_rows() -> None:
    with pytest.raises(
        ShapeError, match=r"a tensor of shape \[\] has 1 entries along dim 0, 24 rows .* need 24"
    ):
        INTERLEAVED.split(torch.ones([]))


def test_a_block_that_holds_two_segments_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"blocks of 4 rows .* \{'attention.k': 2, 'attention.v': 2\} are no mul"
    ):
        INTERLEAVED.split(torch.zeros(6, 4), block=4)


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = GROUPED.split(torch.zeros(16))
    del parts["attention.v"]

    message = r"are \{'attention.q': 8, 'attention.k': 4\}, 16 rows .* need .*'attention.v': 4"
    with pytest.raises(ShapeError, match=message):
        GROUPED.join(parts)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.uint8)
