"""Which formats the products read: what a weight's codes are, and where the scale of each one lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, parse_chain
from octavo.core.formats.granularity import Granularity

_SMALLEST_GROUP = 16
INTEGERS_ADD_UP_TO = 2**31 // 128**2  # products of int8 codes that int32 always holds


@dataclass(frozen=True)
class WeightFormat:
    """A format of weights [out, in] as the kernels see it.

    Attributes:
        element: `int`, `uint`, `e2m1` or `e4m3`.
        bits: Of a code: 4 or 8.
        scale_kind: How scales are stored: `float32`, `e4m3`, `e8m0`.
        rows_per_scale: 1 where each row has scales of its own, 128 for square blocks, 0 where all rows share theirs.
        columns_per_scale: Length of a block along a row; 0 where a row has one scale.
    """

    element: str
    bits: int
    scale_kind: str
    rows_per_scale: int
    columns_per_scale: int


@lru_cache(maxsize=256)
def weight_format(key: str) -> WeightFormat | str:
    """Return the format of a weight, of each one if they are stacked, or why the products do not read it."""
    chain = parse_chain(key)
    if len(chain) != 1:
        return f"a weight of {len(chain)} formats in turn"
    spec = chain[0].unstacked()
    element = _element(spec)
    if element is None:
        return f"codes of {spec.element}: products read e2m1, e4m3 and integers of 4 or 8 bits"
    lengths = _scale_lengths(spec.granularity)
    if isinstance(lengths, str):
        return lengths
    return WeightFormat(element, spec.element_type.bits, spec.scale, *lengths)


def _element(spec: QuantSpec) -> str | None:
    if spec.element in ("e2m1", "e4m3"):
        return spec.element
    if spec.element_type.is_float or spec.element_type.bits not in (4, 8):
        return None
    return "int" if spec.element_type.min < 0 else "uint"


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


def multiplies_codes(x_key: str, weight_key: str) -> str | None:
    """Return the element type, `e4m3` or `int`, of inputs and weights whose codes can be multiplied, or None."""
    form, chain = weight_format(weight_key), parse_chain(x_key)
    if isinstance(form, str) or len(chain) != 1 or form.columns_per_scale or form.scale_kind != "float32":
        return None
    x = chain[0]
    rows_or_all = form.rows_per_scale <= 1 and isinstance(x.granularity, PerTensor | PerToken)
    same = _element(x) == form.element and x.element_type.bits == form.bits == 8
    return form.element if rows_or_all and same and x.scale == "float32" and form.element != "uint" else None
