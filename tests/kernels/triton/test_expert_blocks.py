"""Tiles of rows of experts: every row is in one, beside rows of its own expert only."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.triton.gemm_blocks import blocks_of_experts

CASES = {
    "no rows": [],
    "one row": [3],
    "fewer rows than experts": [4, 0, 4],
    "all in the first": [0] * 37,
    "all in the last": [4] * 37,
    "full tiles": [2] * 16 + [1] * 16,
    "one more than a tile": [2] * 17 + [1] * 33,
    "every expert": [0, 1, 2, 3, 4] * 7,
}


@pytest.mark.parametrize("case", CASES)
def test_each_row_is_in_one_tile_of_its_expert(case: str) -> None:
    expert = torch.tensor(CASES[case], dtype=torch.int64)
    blocks = blocks_of_experts(expert, 5, 16)
    seen = []
    for owner, first, end in zip(*(part.tolist() for part in blocks[1:]), strict=True):
        rows = blocks.order[first:end].tolist()
        assert len(rows) <= 16
        assert {int(expert[row]) for row in rows} <= {owner}
        seen += rows
    assert sorted(seen) == list(range(len(expert)))


def test_rows_of_an_expert_stay_in_their_order() -> None:
    expert = torch.tensor([1, 0] * 20)
    assert blocks_of_experts(expert, 3, 16).order.tolist() == [*range(1, 40, 2), *range(0, 40, 2)]
