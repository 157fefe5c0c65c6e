"""Number formats from first principles: an oracle in numpy that shares no code (and no torch) with octavo.

A format is the table of the values of all its codes, read off the bit fields that the OCP MX specification
v1.0 and two's complement define. Rounding searches that table; packing writes bit strings. Whole tensors are
described by the dict that `QuantSpec.to_json` writes. Arithmetic is float64 and exact, except where octavo
documents fp32 (scale, step, quotient, product): there it is one correctly rounded `np.float32` operation.

Tensors of any dtype come and go as float32 arrays, which hold every float16 and bfloat16 value exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Codes = NDArray[np.uint8]
Spec = Mapping[str, Any]

FLOATS = ("e4m3", "e5m2", "e2m1", "e3m2", "e2m3")
INTEGERS = tuple(
    f"{sign}int{bits}{narrow}" for bits in range(2, 9) for sign in ("", "u") for narrow in ("", "_narrow")
)
ELEMENTS = FLOATS + INTEGERS
ZERO_BELOW = 2.0**-110  # float32 scales: a smaller amax counts as a block of zeros


class Table(NamedTuple):
    """All codes of one format.

    `decoded` holds the value of every code. `values` are the distinct finite values that rounding may return,
    ascending, with one zero; `codes` are theirs.
    """

    bits: int
    decoded: Float64
    values: Float64
    codes: Codes
    negative_zero: int | None
    nan: int | None


def bits_of(values: ArrayLike) -> NDArray[np.uint32]:
    """Return fp32 bit patterns with all NaNs made equal, so that comparing them tells −0 from 0."""
    patterns = np.array(values, dtype=np.float32, ndmin=1)
    patterns[np.isnan(patterns)] = np.nan
    return patterns.view(np.uint32)


# --- one value -------------------------------------------------------------------------------------------


def width(name: str) -> int:
    """Return the number of bits of a code: digits name the fields of a float and the width of an integer."""
    digits = [int(digit) for digit in re.findall(r"\d", name)]
    return 1 + sum(digits) if name in FLOATS else digits[0]


def code_value(name: str, code: int) -> float:
    """Return the value of one code, from its bit fields."""
    fields = format(code, f"0{width(name)}b")
    if name not in FLOATS:
        top = int(fields[0]) * 2 ** (len(fields) - 1)
        return float(int("0" + fields[1:], 2) + (top if name.startswith("u") else -top))
    exponent_bits = int(name[1])
    bias = 2 ** (exponent_bits - 1) - 1
    sign, exponent, mantissa = fields[0], fields[1 : 1 + exponent_bits], fields[1 + exponent_bits :]
    direction = -1.0 if sign == "1" else 1.0
    if name == "e5m2" and "0" not in exponent:  # as in IEEE 754
        return direction * (np.nan if "1" in mantissa else np.inf)
    if name == "e4m3" and "0" not in exponent + mantissa:  # no infinities, one NaN of each sign
        return np.nan
    fraction = Fraction(int(mantissa, 2), 2 ** len(mantissa))
    power = int(exponent, 2)
    if power == 0:  # subnormal: no leading one, and the exponent of the first normals
        return direction * float(fraction * Fraction(2) ** (1 - bias))
    return direction * float((1 + fraction) * Fraction(2) ** (power - bias))


@cache
def table(name: str) -> Table:
    """Enumerate the codes of a format."""
    bits = width(name)
    decoded = np.array([code_value(name, code) for code in range(2**bits)])
    zeros = np.flatnonzero(decoded == 0)
    negative_zero = int(zeros[1]) if len(zeros) > 1 else None
    nans = np.flatnonzero(np.isnan(decoded[: 2 ** (bits - 1)]))
    kept = [c for c in range(2**bits) if np.isfinite(decoded[c]) and c != negative_zero]
    if name.endswith("_narrow") and not name.startswith("u"):
        kept.remove(2 ** (bits - 1))  # the one value without a counterpart of the other sign
    kept.sort(key=lambda code: decoded[code])
    codes = np.array(kept, dtype=np.uint8)
    return Table(bits, decoded, decoded[codes], codes, negative_zero, int(nans[-1]) if len(nans) else None)


def grid_values(name: str) -> Float64:
    """Return the distinct finite values of a format, ascending."""
    return table(name).values


def round_nearest(x: ArrayLike, name: str, ties: str = "even") -> Float64:
    """Return the nearest value of the format, found by search; beyond the range its last value.

    Ties `even` go to the even code and zero keeps its sign in 8-bit floats; in sub-byte floats an exact zero
    is +0 and only what rounds to zero keeps its sign. Ties `toward_zero` go to the smaller magnitude and an
    exact zero is −0. Integers have no −0.
    """
    x = np.asarray(x, dtype=np.float64)
    bits, _, values, codes, _, _ = table(name)
    above = np.searchsorted(values, x).clip(0, len(values) - 1)
    below = (above - 1).clip(0)
    low, high = values[below], values[above]
    middle = (low + high) / 2  # exact: two neighbours and their mean take fewer than 53 bits
    to_high = codes[above] % 2 == 0 if ties == "even" else np.abs(high) < np.abs(low)
    rounded = np.where((x > middle) | ((x == middle) & to_high), high, low)
    if name in FLOATS:
        rounded = np.where(rounded == 0, np.copysign(0.0, x), rounded)
        if ties == "toward_zero":
            rounded = np.where(x == 0, -0.0, rounded)
        elif bits < 8:
            rounded = np.where(x == 0, 0.0, rounded)
    return np.where(np.isnan(x), np.nan, rounded)


def encode(values: ArrayLike, name: str) -> Codes:
    """Return the codes of values that `round_nearest` returned; NaN is the NaN code of most ones, else 0."""
    values = np.asarray(values, dtype=np.float64)
    found = table(name)
    codes = found.codes[np.searchsorted(found.values, values).clip(0, len(found.values) - 1)]
    if found.negative_zero is not None:
        codes = np.where((values == 0) & np.signbit(values), found.negative_zero, codes)
    return np.where(np.isnan(values), found.nan or 0, codes).astype(np.uint8)


def decode(codes: ArrayLike, name: str) -> Float64:
    """Return the value of each code."""
    values: Float64 = table(name).decoded[np.asarray(codes)]
    return values


# --- packing ---------------------------------------------------------------------------------------------


def pack_bits(codes: ArrayLike, bits: int) -> Codes:
    """Pack the last dim by writing each row as one binary number whose lowest digits are the first code."""
    codes = np.asarray(codes, dtype=np.uint8)
    num_bytes = -(-codes.shape[-1] * bits // 8)
    digits = [format(code, f"0{bits}b") for code in range(2**bits)]
    rows = [
        int("0" + "".join(digits[code] for code in reversed(row)), 2).to_bytes(num_bytes, "little")
        for row in codes.reshape(math.prod(codes.shape[:-1]), codes.shape[-1]).tolist()
    ]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(*codes.shape[:-1], num_bytes)


def unpack_bits(packed: ArrayLike, bits: int, num_codes: int) -> Codes:
    """Read `pack_bits` back by cutting each row's binary number into digits."""
    packed = np.asarray(packed, dtype=np.uint8)
    codes = []
    for row in packed.reshape(math.prod(packed.shape[:-1]), packed.shape[-1]):
        digits = format(int.from_bytes(row.tobytes(), "little"), f"0{num_codes * bits}b")
        ends = range(len(digits), 0, -bits)  # the first code has the lowest digits
        codes.append([int(digits[end - bits : end], 2) for end in ends])
    return np.array(codes, dtype=np.uint8).reshape(*packed.shape[:-1], num_codes)


# --- which elements share a scale ------------------------------------------------------------------------


def block_lengths(granularity: Spec, shape: Sequence[int]) -> list[int]:
    """Return how many neighbours along each axis share a scale: every granularity is one of blocks."""
    whole = [max(n, 1) for n in shape]
    match granularity["kind"]:
        case "tensor":
            return whole
        case "token":
            return [1] * (len(shape) - 1) + whole[-1:]
        case "channel":
            whole[granularity["axis"]] = 1
            return whole
    lengths = [1] * len(shape)
    for axis, length in granularity["sizes"].items():
        lengths[int(axis)] = length
    return lengths


def scale_shape(granularity: Spec, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the scales; a last, shorter block counts as one."""
    lengths = block_lengths(granularity, shape)
    counts = tuple(-(-n // length) for n, length in zip(shape, lengths, strict=True))
    match granularity["kind"]:
        case "tensor":
            return ()
        case "token":
            return counts[:-1]
        case "channel":
            return (shape[granularity["axis"]],)
    return counts


def block_amax(x: ArrayLike, granularity: Spec) -> Float32:
    """Return the largest magnitude of each block; NaN where a block holds one; 0 for empty tensors."""
    x = np.asarray(x, dtype=np.float32)
    amax = np.abs(x)
    if x.size:
        for axis, length in enumerate(block_lengths(granularity, x.shape)):
            if length > 1:
                amax = np.maximum.reduceat(amax, np.arange(0, x.shape[axis], length), axis=axis)
    shape = scale_shape(granularity, x.shape)
    return amax.reshape(shape) if x.size else np.zeros(shape, np.float32)


def spread(scales: ArrayLike, granularity: Spec, shape: Sequence[int]) -> Float32:
    """Give each element (or, by broadcasting, all along an axis) the scale of its block."""
    if 0 in shape:
        return np.ones([1] * len(shape), dtype=np.float32)
    lengths = block_lengths(granularity, shape)
    counts = [-(-n // length) for n, length in zip(shape, lengths, strict=True)]
    result = np.asarray(scales, dtype=np.float32).reshape(counts)
    for axis, (n, length) in enumerate(zip(shape, lengths, strict=True)):
        if counts[axis] > 1 and length > 1:
            result = np.repeat(result, length, axis=axis).take(range(n), axis=axis)
    return result


# --- scales ----------------------------------------------------------------------------------------------


class Scales(NamedTuple):
    """`stored` is fp32, codes of e4m3 or biased exponents; values are codes · `step`; see `factor` below."""

    stored: NDArray[Any]
    global_scale: Float32 | None
    step: Float32
    factor: Float32 | None  # what takes values to codes where that is not a division by the step


def round_to_dtype(x: ArrayLike, dtype: str) -> Float32:
    """Round to nearest even in float32, float16 or bfloat16 (8 significant bits, exponents of float32)."""
    if dtype == "float32":
        return np.asarray(x, dtype=np.float32)
    if dtype == "float16":
        return np.asarray(x).astype(np.float16).astype(np.float32)
    exact = np.asarray(x, dtype=np.float64)
    quantum = 2.0 ** (np.maximum(np.frexp(exact)[1], -125) - 8.0)
    rounded = np.rint(exact / quantum) * quantum
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, exact), rounded).astype(np.float32)


def scales_from_amax(amax: ArrayLike, global_amax: ArrayLike | None, spec: Spec) -> Scales:
    """Return the scales of blocks of magnitude `amax`, as octavo's `QuantSpec` and `Scales` document them."""
    amax = np.asarray(amax, dtype=np.float32)
    largest = np.float32(grid_values(spec["element"])[-1])
    one = np.float32(1)
    with np.errstate(all="ignore"):
        if spec["scale"] == "e8m0":  # the smallest power of two under which amax does not saturate
            reach = float(largest) * 2.0 ** np.arange(-127, 128)
            exponents = np.searchsorted(reach, amax).clip(0, 254)
            stored = np.where(np.isfinite(amax), exponents, 255).astype(np.uint8)
            step = np.where(stored == 255, np.nan, 2.0 ** (stored - 127.0)).astype(np.float32)
            return Scales(stored, None, step, None)
        if spec["scale"] == "e4m3":
            whole = np.asarray(global_amax, dtype=np.float32)
            global_scale = np.where(whole < ZERO_BELOW, one, whole / np.float32(spec["global_max"]))
            ratio = np.where(amax == 0, one, amax / (largest * global_scale)).clip(2.0**-9, 448)
            rounded = round_nearest(ratio, "e4m3").astype(np.float32)
            return Scales(encode(rounded, "e4m3"), global_scale, rounded * global_scale, None)
        if spec["arithmetic"] != "multiply":
            step = np.where(amax < ZERO_BELOW, one, amax / largest)
            return Scales(step, None, step, None)
        ratio = one / amax * largest if spec["element"] in FLOATS else largest / amax
        factor: Float32 = np.where(amax < ZERO_BELOW, one, ratio).astype(np.float32)
        step = (one / factor).astype(np.float32)
        return Scales(step, None, step, factor)


# --- whole tensors ---------------------------------------------------------------------------------------


def _rounded(x: Float32, spec: Spec, amax: Any, global_amax: Any, dtype: str) -> tuple[Float64, Scales]:
    granularity = spec["granularity"]
    scales = scales_from_amax(block_amax(x, granularity) if spec["dynamic"] else amax, global_amax, spec)
    with np.errstate(all="ignore"):
        if scales.factor is not None:
            codes = x * spread(scales.factor, granularity, x.shape)
        else:
            codes = x / spread(scales.step, granularity, x.shape)
            if spec["arithmetic"] == "divide_native":
                codes = round_to_dtype(codes, dtype)
    return round_nearest(codes, spec["element"], spec["ties"]), scales


def fake_quantize(
    x: ArrayLike, spec: Spec, amax: Any = None, global_amax: Any = None, dtype: str = "float32"
) -> Float32:
    """Return what codes and scales of `x` stand for, rounded to `dtype`, which is also the dtype of `x`."""
    x = np.asarray(x, dtype=np.float32)
    grid, scales = _rounded(x, spec, amax, global_amax, dtype)
    with np.errstate(all="ignore"):
        values = grid.astype(np.float32) * spread(scales.step, spec["granularity"], x.shape)
        return round_to_dtype(values, dtype)


def quantize(
    x: ArrayLike, spec: Spec, amax: Any = None, global_amax: Any = None, dtype: str = "float32"
) -> tuple[Codes, NDArray[Any], Float32 | None]:
    """Return packed codes, stored scales and the global scale of `x`."""
    grid, scales = _rounded(np.asarray(x, dtype=np.float32), spec, amax, global_amax, dtype)
    packed = pack_bits(encode(grid, spec["element"]), width(spec["element"]))
    return packed, scales.stored, scales.global_scale


def dequantize(
    payload: ArrayLike,
    stored: ArrayLike,
    global_scale: Any,
    spec: Spec,
    shape: Sequence[int],
    dtype: str = "float32",
) -> Float32:
    """Return the values of packed codes and stored scales, rounded to `dtype` once."""
    codes = unpack_bits(payload, width(spec["element"]), shape[-1])
    if spec["scale"] == "e8m0":
        exponents = np.asarray(stored, dtype=np.float64)
        step = np.where(exponents == 255, np.nan, 2.0 ** (exponents - 127)).astype(np.float32)
    elif spec["scale"] == "e4m3":
        step = decode(stored, "e4m3").astype(np.float32) * np.float32(global_scale)
    else:
        step = np.asarray(stored, dtype=np.float32)
    with np.errstate(all="ignore"):
        grid = decode(codes, spec["element"]).astype(np.float32)
        return round_to_dtype(grid * spread(step, spec["granularity"], shape), dtype)
