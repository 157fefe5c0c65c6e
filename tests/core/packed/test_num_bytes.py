"""The bytes that a packed tensor takes: codes without gaps, and its scales."""

from __future__ import annotations

import pytest

from helpers.packed_specs import SPECS, some_tensor, state_of
from octavo.core.formats import PerBlock, PerToken, QuantSpec
from octavo.core.packed import PackedTensor

NUM_BYTES = {
    "fp8": 32 * 64 + 4,
    "int8 per channel": 32 * 64 + 32 * 4,
    "fp8 square blocks": 32 * 64 + 2 * 4 * 4,
    "int4 blocks": 32 * 32 + 32 * 2 * 4,
    "int3": 32 * 24 + 32 * 4 * 4,
    "nvfp4": 32 * 32 + 32 * 4 + 4,
    "mxfp6": 32 * 48 + 32 * 2,
    "mxfp4": 32 * 32 + 32 * 2,
}


@pytest.mark.parametrize("name", NUM_BYTES)
def test_bytes_are_those_of_codes_and_scales(name: str) -> None:
    x = some_tensor((32, 64))

    assert PackedTensor.pack(x, state_of(x, SPECS[name]), SPECS[name]).num_bytes == NUM_BYTES[name]


def test_lengths_that_fill_no_whole_byte_take_one_more() -> None:
    x = some_tensor((3, 5))
    spec = QuantSpec("int3", PerBlock(((-1, 4),)))

    packed = PackedTensor.pack(x, state_of(x, spec), spec)

    assert packed.payload.shape == (3, 2), "five codes of three bits are fifteen"
    assert packed.num_bytes == 3 * 2 + 3 * 2 * 4
    assert PackedTensor.pack(x, [], QuantSpec("e4m3", PerToken(), dynamic=True)).num_bytes == 15 + 12
