"""Tiles and splits of products: a default for each size, which depends on nothing else, and what may be faster."""

from __future__ import annotations

import math

from octavo.kernels.triton.tuning import Launch

_ENOUGH_PROGRAMS = 512  # with fewer, columns are split so that all of the device has something to do
_SMALLEST_SPLIT = 4  # tiles
_FEW_ROWS = 64


def tiles(rows: int, num_out: int, num_in: int) -> list[Launch]:
    """Return the launches of a product of `rows` rows with a weight [num_out, num_in], the default first."""
    if rows <= _FEW_ROWS:
        height = max(16, _power_of_two(rows))
        shapes = [
            (height, 64, 128, 4, 3),
            (height, 32, 256, 4, 3),
            (height, 64, 128, 4, 5),
            (height, 128, 128, 8, 3),
        ]
    else:
        shapes = [(128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 256, 64, 8, 3), (128, 128, 128, 8, 3)]
    default, *others = (_launch(rows, num_out, num_in, *shape) for shape in shapes)
    fewer = {**default, "splits": max(1, default["splits"] // 2)}
    return [default, *([fewer] if fewer != default else []), *others]


def _launch(
    rows: int, num_out: int, num_in: int, height: int, width: int, depth: int, num_warps: int, num_stages: int
) -> Launch:
    programs = math.ceil(rows / height) * math.ceil(num_out / width)
    most = max(1, num_in // (depth * _SMALLEST_SPLIT))
    return {
        "block_rows": height,
        "block_out": width,
        "block_in": depth,
        "splits": min(most, _power_of_two(max(1, _ENOUGH_PROGRAMS // max(1, programs)))),
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length()
