"""Which formats products read, and why not the others."""

from __future__ import annotations

import pytest

from helpers.triton_products import FORMATS
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, chain_key
from octavo.kernels.triton.gemm_formats import WeightFormat, multiplies_codes, weight_format
from octavo.kernels.triton.gemm_tiles import tiles
from octavo.kernels.triton.kernels import TRITON

INT8, E4M3 = QuantSpec("int8"), QuantSpec("e4m3")
REFUSED = {
    "codes of 6 bits": [QuantSpec("e3m2", PerBlock(((-1, 32),)), "e8m0", dynamic=True)],
    "codes of 3 bits": [QuantSpec("int3")],
    "blocks of 24 columns": [QuantSpec("int4", PerBlock(((-1, 24),)))],
    "blocks of 8 columns": [QuantSpec("int4", PerBlock(((-1, 8),)))],
    "blocks of 1 columns": [QuantSpec("int4", PerBlock(((-2, 32),)))],
    "PerChannel(axis=1)": [QuantSpec("int8", PerChannel(1))],
    "2 formats in turn": [QuantSpec("int4", PerBlock(((-1, 32),))), E4M3],
    "0 formats in turn": [],
}


@pytest.mark.parametrize("name", FORMATS)
def test_products_read(name: str) -> None:
    for spec in (FORMATS[name], FORMATS[name].stacked()):
        assert isinstance(weight_format(spec.key), WeightFormat)
        assert TRITON.declines("packed_linear", spec.key) is None


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_left_to_the_reference_has_a_reason(reason: str) -> None:
    assert reason in str(TRITON.declines("packed_expert_linear", chain_key(REFUSED[reason])))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (E4M3, E4M3),
        (QuantSpec("e4m3", PerToken(), dynamic=True), QuantSpec("e4m3", PerChannel(0))),
        (INT8, QuantSpec("int8", PerChannel(-2))),
        (QuantSpec("int8_narrow", PerToken(), dynamic=True), INT8),
    ],
)
def test_codes_of_one_type_are_multiplied(x: QuantSpec, weight: QuantSpec) -> None:
    assert multiplies_codes(x.key, weight.key)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (E4M3, INT8),
        (INT8, E4M3),
        (QuantSpec("e5m2"), E4M3),
        (QuantSpec("int4"), INT8),
        (QuantSpec("uint8"), INT8),
        (INT8, QuantSpec("int4", PerChannel(0))),
        (E4M3, FORMATS["fp8 square blocks"]),
        (FORMATS["mxfp8"], FORMATS["mxfp8"]),
        (QuantSpec("e4m3", PerChannel(0)), E4M3),
    ],
)
def test_others_are_not(x: QuantSpec, weight: QuantSpec) -> None:
    assert not multiplies_codes(x.key, weight.key)


def test_inputs_of_two_formats_are_not() -> None:
    assert not multiplies_codes(chain_key([INT8, INT8]), INT8.key)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(
    "lengths", [(1, 1, 1), (1, 8192, 8192), (16, 64, 65536), (4096, 8192, 8192), (2, 1, 2**20)]
)
def test_launches_stay_within_the_device(lengths: tuple[int, int, int], bits: int) -> None:
    for tile in tiles(*lengths, bits=bits):
        assert 1 <= tile["splits"] <= 65535
        assert tile["block_rows"] * tile["block_out"] <= 128 * 256  # fp32 sums in the registers of 8 warps


def test_the_default_launch_depends_on_the_size_alone() -> None:
    tiles.cache_clear()
    assert tiles(1, 8192, 8192)[0] == {
        "block_rows": 16, "block_out": 64, "block_in": 128, "splits": 4, "num_warps": 4, "num_stages": 3,
    }  # fmt: skip
