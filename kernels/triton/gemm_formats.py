"""Which formats the products read: what a weight's codes are, and where the scale of each one lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, parse_chain
from octavo.core.formats.granularity import Granularity
from octavo.kernels.triton.number_format import NumberFormat, number_format

_SMALLEST_GROUP = 16
INTEGERS_ADD_UP_TO = 2**31 // 128**2  # products of int8 codes that int32 always holds


@dataclass(frozen=True)
class WeightFormat:
    """A format of weights [out, in] as the kernels see it.

    Attributes:
        numbers: Its codes, of 4 or 8 bits, and the type of its scales.
        rows_per_scale: 1 where each row has scales of its own, 128 for square blocks, 0 where all rows share theirs.
        columns_per_scale: Length of a block along a row; 0 where a row has one scale.
    """

    numbers: NumberFormat
    rows_per_scale: int
    columns_per_scale: int


@lru_cache(maxsize=256)
def weight_format(key: str) -> WeightFormat | str:
    """Return the format of a weight, of each one if they are stacked, or why the products do not read it."""
    chain = parse_chain(key)
    if len(chain) != 1:
        return f"a weight of {len(chain)} formats in turn"
    spec = chain[0].unstacked()
    if spec.element_type.bits not in (4, 8):
        return f"codes of {spec.element_type.bits} bits; products read those of 4 and 8"
    lengths = _scale_lengths(spec.granularity)
    if isinstance(lengths, str):
        return lengths
    return WeightFormat(number_format(spec), *lengths)


def _scale_lengths(granularity: Granularity) -> tuple[int, int] | str:
    """Return rows and columns that share a scale, 0 for all of them, or why that is not read."""
    match granularity:
        case PerTensor():
            return 0, 0
        case PerToken() | PerChannel(axis=0) | PerChannel(axis=-2):
            return 1, 0
        case PerBlock(sizes=sizes) if dict(sizes).keys() <= {-1, -2}:
            columns, rows = dict(sizes).get(-1, 1), dict(sizes).get(-2, 1)
            if columns < _SMALLEST_GROUP or columns & (columns - 1):
                return f"blocks of {columns} columns: products read powers of two from {_SMALLEST_GROUP}"
            return rows, columns
    return f"scales along other dims than out and in: {granularity}"


def multiplies_codes(x_key: str, weight_key: str) -> bool:
    """Return whether products of such inputs and weights may be those of their codes, scaled once.

    Both are e4m3 or both signed integers of 8 bits, with one fp32 scale, or one for each row.
    """
    form, chain = weight_format(weight_key), parse_chain(x_key)
    if isinstance(form, str) or len(chain) != 1 or form.rows_per_scale > 1 or form.columns_per_scale:
        return False
    x, weight = number_format(chain[0]), form.numbers
    if not isinstance(chain[0].granularity, PerTensor | PerToken) or {x.scale, weight.scale} != {"float32"}:
        return False
    if "e4m3" in (x.element, weight.element):
        return x.element == weight.element
    return not (x.is_float or weight.is_float) and x.bits == weight.bits == 8 and x.low < 0 and weight.low < 0
