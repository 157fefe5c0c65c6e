"""Rows of packed bytes as rows of little-endian int32 words, and back: how checkpoints hold INT codes."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 4  # of a word, to which rows are filled up with zeros


def to_words(payload: Tensor) -> Tensor:
    """Return uint8 [rows, n] as int32 [rows, ⌈n / 4⌉]."""
    filled = torch.nn.functional.pad(payload, (0, -payload.shape[-1] % _BYTES))
    return filled.contiguous().view(torch.int32)


def from_words(words: Tensor, num_bytes: int) -> Tensor:
    """Return the first `num_bytes` bytes of each row of int32 [rows, n]."""
    return words.contiguous().view(torch.uint8)[:, :num_bytes].contiguous()
