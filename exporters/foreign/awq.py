"""The layout of AutoAWQ's GEMM checkpoints: INT4, packed along the outputs, eight interleaved codes to a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.core.errors import CheckpointError
from octavo.exporters.foreign.group_size import group_size_of
from octavo.exporters.foreign.layout import IntegerFormat, Unpacked
from octavo.exporters.foreign.words import unpack_rows

_BITS = 4
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight neighbouring columns in a word, whose order is 0 2 4 6 1 3 5 7
_VERSION = "gemm"


class AwqLayout:
    """`qweight` int32 [in, out / 8], `qzeros` int32 [groups, out / 8] and `scales` [groups, out].

    As AutoAWQ writes `version: gemm` (https://github.com/casper-hansen/AutoAWQ); value = (code − zero) · scale.

    Raises:
        CheckpointError: metadata describes another layout.
    """

    name = "AWQ"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    optional: tuple[str, ...] = ()

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        version = str(config.get("version") or config.get("format") or _VERSION).lower()
        bits = config.get("bits", config.get("w_bit", _BITS))
        if version != _VERSION or bits != _BITS:
            raise CheckpointError(
                f"{file}: AWQ checkpoints of version {_VERSION!r} with {_BITS} bits are read, found version "
                f"{version!r} with {bits} bits"
            )
        is_symmetric = config.get("zero_point", True) is False
        self.format = IntegerFormat(_BITS, group_size_of(config, file), is_symmetric)

    def unpack(self, tensors: Mapping[str, Tensor], where: str) -> Unpacked:
        """Return a layer's weight; see `Layout`."""
        codes, zeros = (_deinterleaved(tensors[part], f"{where}{part}") for part in ("qweight", "qzeros"))
        return Unpacked(codes.T.contiguous(), tensors["scales"].T, zeros.T)


def _deinterleaved(words: Tensor, what: str) -> Tensor:
    codes = unpack_rows(words, _BITS, what)
    return codes.reshape(len(codes), -1, len(_PLACES))[..., list(_PLACES)].flatten(-2)
