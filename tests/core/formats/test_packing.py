"""Packing as one little-endian bit stream, against Python's unbounded integers."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from octavo.core.errors import ShapeError
from octavo.core.formats.packing import pack, packed_length, unpack
from oracles import number_formats as oracle

LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 101]
WIDTHS = range(1, 9)


def random_codes(shape: tuple[int, ...], bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


def as_big_integer(codes: list[int], bits: int) -> list[int]:
    """Return the bytes of the number in which code i stands for code · 2^(i·bits)."""
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    return list(number.to_bytes(math.ceil(len(codes) * bits / 8), "little"))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_row_packs_to_the_bytes_of_a_big_integer(bits: int, length: int) -> None:
    codes = random_codes((length,), bits)

    packed = pack(codes, bits)

    assert packed.dtype == torch.uint8
    assert packed.tolist() == as_big_integer(codes.tolist(), bits)
    assert len(packed) == packed_length(length, bits)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_pack_alone_and_come_back(bits: int, length: int) -> None:
    codes = random_codes((3, 2, length), bits, seed=1)

    packed = pack(codes, bits)

    assert packed.shape == (3, 2, packed_length(length, bits))
    assert packed.is_contiguous()
    assert_array_equal(packed.numpy(), oracle.pack_bits(codes.numpy(), bits))
    assert torch.equal(unpack(packed, bits, length), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_codes_fill_every_bit(bits: int) -> None:
    packed = pack(torch.full((8,), 2**bits - 1, dtype=torch.uint8), bits)

    assert packed.tolist() == [255] * bits


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(0,), (0, 9), (4, 0), (2, 0, 8)])
def test_empty_tensors_pack_and_come_back(shape: tuple[int, ...], bits: int) -> None:
    packed = pack(random_codes(shape, bits), bits)

    assert packed.shape == (*shape[:-1], packed_length(shape[-1], bits))
    assert unpack(packed, bits, shape[-1]).shape == shape


def test_four_bits_have_the_even_column_in_the_low_nibble() -> None:
    assert pack(torch.tensor([0x1, 0x2, 0xF], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_strided_tensor_packs_like_its_copy(bits: int) -> None:
    codes = random_codes((9, 13), bits).t()

    assert torch.equal(pack(codes, bits), pack(codes.contiguous(), bits))
    assert torch.equal(unpack(pack(codes, bits).t().contiguous().t(), bits, 9), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_bits_behind_the_last_code_are_ignored(bits: int) -> None:
    codes = random_codes((5,), bits)
    packed = pack(codes, bits)
    packed[-1] |= 0xFF & ~(2 ** (5 * bits - 8 * (len(packed) - 1)) - 1)

    assert torch.equal(unpack(packed, bits, 5), codes)


@pytest.mark.parametrize(
    ("num_codes", "bits", "expected"),
    [(0, 3, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (3, 3, 2), (8, 3, 3), (5, 6, 4)],
)
def test_packed_length_counts_started_bytes(num_codes: int, bits: int, expected: int) -> None:
    assert packed_length(num_codes, bits) == expected


@pytest.mark.parametrize(
    ("found", "bits", "num_codes", "needed"),
    [(4, 4, 9, 5), (5, 4, 8, 4), (2, 3, 8, 3), (0, 6, 1, 1), (7, 8, 9, 9)],
)
def test_a_wrong_length_is_an_error_with_its_numbers(
    found: int, bits: int, num_codes: int, needed: int
) -> None:
    wanted = f"{num_codes} codes of {bits} bits take {needed} bytes"

    with pytest.raises(
        ShapeError, match=re.escape(f"{wanted}, found a last dim of {found} in shape (2, {found})")
    ):
        unpack(torch.zeros(2, found, dtype=torch.uint8), bits, num_codes)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data(), bits=st.integers(1, 8))
def test_any_codes_come_back(data: st.DataObject, bits: int) -> None:
    row = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    codes = torch.tensor(row, dtype=torch.uint8)

    packed = pack(codes, bits)

    assert packed.tolist() == as_big_integer(row, bits)
    assert unpack(packed, bits, len(row)).tolist() == row
