"""Tiles and splits of products: a default for each size, which depends on nothing else, and what may be faster."""

from __future__ import annotations

import math
from functools import lru_cache

from octavo.kernels.triton.tuning import Launch

_ENOUGH_PROGRAMS = 512  # with fewer, columns are split so that all of the device has something to do
_SMALLEST_SPLIT = 4  # tiles
_FEW_ROWS = 64

_Shape = tuple[int, int, int, int, int]  # rows, out, in; warps; stages of the pipeline of loads


@lru_cache(maxsize=1024)
def tiles(rows: int, num_out: int, num_in: int, bits: int = 16) -> tuple[Launch, ...]:
    """Return the launches of products of about `rows` rows with weights [num_out, num_in], the default first.

    Operands have `bits` bits: 8 for codes. Tensor cores do not multiply 32 exactly; what does has registers for smaller
    tiles.
    """
    launches = [_launch(rows, num_out, num_in, shape) for shape in _shapes(rows, bits)]
    fewer = {**launches[0], "splits": max(1, launches[0]["splits"] // 2)}
    return launches[0], *([fewer] if fewer != launches[0] else []), *launches[1:]


def _shapes(rows: int, bits: int) -> list[_Shape]:
    height = max(16, _power_of_two(rows))
    if bits == 32:
        height = min(height, 64)
        return [(height, 64, 32, 4, 3), (height, 32, 64, 4, 3)]
    if rows <= _FEW_ROWS:
        return [
            (height, 64, 128, 4, 3),
            (height, 32, 256, 4, 3),
            (height, 64, 128, 4, 5),
            (height, 128, 128, 8, 3),
        ]
    depth = 1024 // bits
    return [(128, 128, depth, 8, 3), (64, 128, depth, 4, 3), (128, 256, depth, 8, 3), (128, 128, depth, 4, 4)]


def _launch(rows: int, num_out: int, num_in: int, shape: _Shape) -> Launch:
    height, width, depth, num_warps, num_stages = shape
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
