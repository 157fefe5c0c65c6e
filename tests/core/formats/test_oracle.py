"""The oracle itself, against literal tables, brute force, numpy's bit packing and ml_dtypes' bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from oracles import number_formats as oracle

PRINTED = {  # the positive values, as the OCP MX specification v1.0 and its readers print them
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e2m3": [*np.arange(0, 16) / 8, *np.arange(8, 16) / 4, *np.arange(8, 16) / 2],
    "e3m2": [
        0,
        0.0625,
        0.125,
        0.1875,
        0.25,
        0.3125,
        0.375,
        0.4375,
        *(m * 2.0**e for e in range(-3, 3) for m in (4, 5, 6, 7)),
    ],
}


def random_floats(count: int) -> np.ndarray:
    patterns = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    values = patterns.view(np.float32)
    return values[np.isfinite(values)]


def test_it_shares_no_code_with_octavo_and_needs_no_torch() -> None:
    tests = Path(oracle.__file__).parents[1]
    script = "import sys, oracles.number_formats; print([m for m in ('torch', 'octavo') if m in sys.modules])"

    output = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        check=True,
        text=True,
    )

    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PRINTED)
def test_small_floats_have_the_printed_values(name: str) -> None:
    values = oracle.grid_values(name)

    assert values[values >= 0].tolist() == PRINTED[name]
    assert values[values <= 0].tolist() == [-v for v in reversed(PRINTED[name])]


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [
        ("e4m3", 0x7E, 448.0),
        ("e4m3", 0x08, 2.0**-6),
        ("e4m3", 0x01, 2.0**-9),
        ("e4m3", 0xB8, -1.0),
        ("e5m2", 0x7B, 57344.0),
        ("e5m2", 0x7C, np.inf),
        ("e5m2", 0x01, 2.0**-16),
        ("int8", 0x80, -128.0),
        ("int4", 0xF, -1.0),
        ("uint4", 0xF, 15.0),
    ],
)
def test_known_codes(name: str, code: int, value: float) -> None:
    assert oracle.code_value(name, code) == value


@pytest.mark.parametrize("ties", ["even", "toward_zero"])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e3m2"])
def test_rounding_is_the_nearest_of_all_values_in_exact_arithmetic(name: str, ties: str) -> None:
    values = oracle.grid_values(name)
    middles = (values[1:] + values[:-1]) / 2
    found = oracle.table(name)
    for x in [*middles, *np.nextafter(middles, 0), *np.random.default_rng(1).normal(size=100)]:
        distances = [abs(Fraction(x) - Fraction(v)) for v in values]
        smallest = min(distances)
        nearest = [i for i, distance in enumerate(distances) if distance == smallest]
        preferred = min(nearest, key=lambda i: found.codes[i] % 2 if ties == "even" else abs(values[i]))

        assert oracle.round_nearest(x, name, ties) == values[preferred]


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    x = random_floats(200_000)
    x = np.concatenate(
        [x, (x.view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)]
    )  # and every kind of tie
    x = np.concatenate([x, np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38], dtype=np.float32)])
    with np.errstate(over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)

    assert_array_equal(oracle.bits_of(oracle.round_to_dtype(x, "bfloat16")), oracle.bits_of(expected))


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_that_of_numpy(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (4, 13), dtype=np.uint8)
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits].reshape(4, -1)

    packed = oracle.pack_bits(codes, bits)

    assert_array_equal(packed, np.packbits(stream, axis=-1, bitorder="little"))
    assert_array_equal(oracle.unpack_bits(packed, bits, 13), codes)


def test_zero_and_its_sign() -> None:
    zeros = [0.0, -0.0, 1e-30, -1e-30]

    signs = {
        (name, ties): np.signbit(oracle.round_nearest(zeros, name, ties)).tolist()
        for name, ties in [("e4m3", "even"), ("e2m1", "even"), ("e2m1", "toward_zero"), ("int8", "even")]
    }

    assert signs == {
        ("e4m3", "even"): [False, True, False, True],
        ("e2m1", "even"): [False, False, False, True],
        ("e2m1", "toward_zero"): [True, True, False, True],
        ("int8", "even"): [False, False, False, False],
    }
