"""Rows of experts cut into tiles on the device: nothing about who has how many rows comes back to the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Tiles of rows, int64: tile i are the rows order[first[i]:end[i]], which belong to expert[i]; some are empty."""

    order: Tensor
    expert: Tensor
    first: Tensor
    end: Tensor


def blocks_of_experts(expert: Tensor, num_experts: int, block_rows: int) -> Blocks:
    """Return the tiles of rows whose experts are `expert` (int64 [rows]), at most `block_rows` in each.

    Where there are no more rows than experts, each row is a tile: most have an expert of their own.
    """
    rows = expert.shape[0]
    places = torch.arange(rows, device=expert.device)
    if rows <= num_experts:
        return Blocks(places, expert, places, places + 1)
    by_expert, order = expert.sort(stable=True)
    bounds = torch.searchsorted(by_expert, torch.arange(num_experts + 1, device=expert.device))
    blocks = (bounds.diff() + block_rows - 1) // block_rows
    ends = blocks.cumsum(0)
    index = places[: rows // block_rows + num_experts]  # no division into tiles has more
    owner = torch.searchsorted(ends, index, right=True).clamp_(max=num_experts - 1)
    first = bounds[owner] + (index - (ends - blocks)[owner]) * block_rows
    return Blocks(order, owner, first, torch.minimum(first + block_rows, bounds[owner + 1]))
