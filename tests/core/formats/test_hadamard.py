"""The Hadamard transform against the matrix itself, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.core.errors import ShapeError
from octavo.core.formats.hadamard import hadamard_block, hadamard_transform


def matrix(n: int) -> np.ndarray:
    signs = [[1.0 - 2.0 * ((i & j).bit_count() % 2) for j in range(n)] for i in range(n)]
    return np.array(signs) / np.sqrt(n)


@pytest.mark.parametrize(
    ("length", "block", "used"), [(64, None, 64), (96, None, 32), (96, 8, 8), (6, None, 2)]
)
def test_each_block_is_multiplied_by_the_matrix(length: int, block: int | None, used: int) -> None:
    x = torch.randn(3, 5, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    expected = x.numpy().reshape(3, 5, length // used, used) @ matrix(used)

    assert hadamard_block(length, block) == used
    found = hadamard_transform(x, block)
    np.testing.assert_allclose(found.numpy(), expected.reshape(3, 5, length), rtol=0, atol=1e-14)
    torch.testing.assert_close(hadamard_transform(found, block), x, rtol=0, atol=1e-14)


def test_sums_of_bf16_are_rounded_once() -> None:
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).bfloat16()

    found = hadamard_transform(x)

    assert found.dtype == torch.bfloat16
    exact = torch.from_numpy(x.double().numpy() @ matrix(128))
    # One rounding to 8 bits is off by 2^-8 of the value at most; what fp32 sums lose is far below.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8 * 1.001, atol=1e-6)


def test_strided_and_empty_tensors() -> None:
    x = torch.randn(2, 16, 3, 4).transpose(1, 3)

    assert torch.equal(hadamard_transform(x), hadamard_transform(x.contiguous()))
    assert hadamard_transform(torch.empty(0, 16)).shape == (0, 16)


@pytest.mark.parametrize(
    ("length", "block", "message"),
    [
        (15, None, "needs a dim of even length, found 15"),
        (96, 64, "in blocks of 64 needs a power of two that divides the last dim, 96; the largest is 32"),
        (96, 3, "in blocks of 3 needs a power of two"),
    ],
)
def test_lengths_that_do_not_divide(length: int, block: int | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        hadamard_transform(torch.ones(2, length), block)
