"""Scales as bytes: what layers store, whatever wraps them."""

from __future__ import annotations

import pytest
import torch

from octavo.core.packed.stored_bytes import from_bytes, to_bytes

SHAPES = [(), (3,), (3, 1), (2, 3), (2, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_come_back_as_they_were(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.full(shape, 1.3).to(dtype)

    stored = to_bytes(values)

    assert stored.dtype == torch.uint8
    assert stored.shape == (*shape, dtype.itemsize), "a scalar gets a dim, and rows stay rows"
    back = from_bytes(stored, dtype)
    assert back.shape == shape
    assert back.dtype == dtype
    assert torch.equal(back.float(), values.float())


def test_memory_is_shared() -> None:
    values = torch.ones(3)

    from_bytes(to_bytes(values), torch.float32)[1] = 7.0

    assert values.tolist() == [1.0, 7.0, 1.0]


def test_slices_are_copied_first() -> None:
    values = torch.arange(12.0).reshape(3, 4)[:, ::2]

    assert torch.equal(from_bytes(to_bytes(values), torch.float32), values)


def test_the_empty_tensor_that_stands_for_a_sharded_one_is_read_as_empty() -> None:
    assert from_bytes(torch.empty(0, dtype=torch.uint8), torch.float32).shape == (0,)
