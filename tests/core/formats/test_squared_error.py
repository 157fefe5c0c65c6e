"""Sums of squares: what they add, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.formats.squared_error import RUN, folded, num_runs, run_sums


def recursive(numbers: list[float]) -> float:
    """Return the sum of 2^n numbers, halves added to each other place by place."""
    half = len(numbers) // 2
    if not half:
        return numbers[0]
    return recursive([first + second for first, second in zip(numbers[:half], numbers[half:], strict=True)])


def spread(*shape: int) -> Tensor:
    """Return numbers of very different sizes, so that each order of a sum has a result of its own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * torch.exp2(torch.randn(shape, generator=generator) * 8)


def test_halves_are_added_to_each_other() -> None:
    numbers = spread(3, 16).double()
    assert folded(numbers).tolist() == [recursive(row) for row in numbers.tolist()]
    assert folded(numbers[:, :11]).tolist() == [
        recursive([*row[:11], *[0.0] * 5]) for row in numbers.tolist()
    ]
    assert folded(numbers[:, :1]).tolist() == numbers[:, 0].tolist()


@pytest.mark.parametrize("columns", [1, RUN - 1, RUN, 2 * RUN + 5])
def test_each_run_of_columns_has_its_sums(columns: int) -> None:
    x, stored = spread(4, columns), spread(4, columns) * 0.99

    sums = run_sums(x, stored)

    assert sums.shape == (2, 4, num_runs(columns))
    for row in range(4):
        for run in range(num_runs(columns)):
            part = slice(run * RUN, (run + 1) * RUN)
            exact = x[row, part].tolist()
            # Differences are rounded to fp32 once; their squares have 48 bits, which a float64 holds.
            errors = (stored[row, part] - x[row, part]).tolist()
            for found, numbers in zip(sums[:, row, run].tolist(), (exact, errors), strict=True):
                squares = [number * number for number in numbers]
                assert found == recursive(squares + [0.0] * (RUN - len(squares)))


def test_values_of_other_dtypes_are_widened_first() -> None:
    x, stored = spread(2, 40).bfloat16(), spread(2, 40)
    assert torch.equal(run_sums(x, stored), run_sums(x.float(), stored))


def test_squares_beyond_fp32_are_finite() -> None:
    assert run_sums(torch.tensor([[1e30]]), torch.tensor([[2e30]])).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)], ids=str)
def test_nothing_sums_to_zero(shape: tuple[int, ...]) -> None:
    sums = run_sums(torch.zeros(shape), torch.zeros(shape))
    assert folded(sums.flatten(1)).tolist() == [0.0, 0.0]
