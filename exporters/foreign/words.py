"""Matrices of int32 words, in which these tools pack codes."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.core.formats.packing import packed_length, unpack
from octavo.core.formats.words import from_words


def unpack_rows(words: Tensor, bits: int, what: str) -> Tensor:
    """Return uint8 [rows, 32 · n / bits] of int32 [rows, n], each row one little-endian string of codes.

    Raises:
        CheckpointError: it is no matrix of int32, or its rows hold no whole number of codes.
    """
    if words.dtype != torch.int32 or words.dim() != 2 or words.shape[1] * 32 % bits:
        raise CheckpointError(
            f"{what} must be a matrix of torch.int32 whose rows hold whole codes of {bits} bits, found {words.dtype} "
            f"{tuple(words.shape)}"
        )
    columns = words.shape[1] * 32 // bits
    return unpack(from_words(words, packed_length(columns, bits)), bits, columns)
