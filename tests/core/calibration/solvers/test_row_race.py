"""Races over rows: they find what sums over all rows say, and leave out what cannot win."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from octavo.core.calibration.solvers.row_race import RaceResult, race

NUM_ROWS = 4000


def run(errors: Tensor, magnitudes: Tensor | None = None) -> tuple[RaceResult, list[int]]:
    """Return what a race among `errors` [candidates, rows] finds, and how many rows of each it looked at."""
    looked = [0] * len(errors)

    def row_errors(candidate: int, rows: Tensor) -> Tensor:
        looked[candidate] += len(rows)
        return errors[candidate, rows]

    found = race(len(errors), errors.mean(0) if magnitudes is None else magnitudes, row_errors)
    return found, looked


def noisy(means: list[float], seed: int, num_rows: int = NUM_ROWS) -> Tensor:
    """Errors of rows that differ tenfold, and by 30 % at random from candidate to candidate."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp(torch.randn(num_rows, generator=generator))
    chance = 1 + 0.3 * torch.randn(len(means), num_rows, generator=generator)
    return torch.tensor(means)[:, None] * rows * chance.clamp_min(0.1)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_is_that_of_all_rows(seed: int) -> None:
    errors = noisy([3.0, 1.2, 1.02, 1.0, 1.01, 1.3, 2.0], seed)

    found, looked = run(errors)

    assert found.best == int(errors.double().sum(1).argmin())
    assert looked[0] == looked[-1] == 128, "those far behind are dropped at the first look"
    assert sum(looked) < 0.7 * errors.numel()
    assert math.isclose(found.errors[0], float(errors[0].sum()), rel_tol=0.3), "an estimate"


def test_two_that_are_close_run_to_the_end_where_sums_are_exact() -> None:
    errors = noisy([1.0, 5.0], 0)
    errors = torch.stack([errors[0], errors[0], errors[1]])
    errors[1, NUM_ROWS // 2] -= 1e-3

    found, looked = run(errors)

    assert (found.best, looked) == (1, [NUM_ROWS, NUM_ROWS, 128])
    assert found.errors[:2] == errors[:2].double().sum(1).tolist()


def test_a_few_loud_rows_decide() -> None:
    errors = noisy([1.0, 2.0], 1)
    errors[0, 17] += 50_000  # one row in 4,000, which no sample would show

    found, _ = run(errors, errors.amax(0))

    assert found.best == 1


def test_few_rows_are_all_compared() -> None:
    errors = noisy([1.0, 1.5, 40.0], 2, num_rows=50)

    found, looked = run(errors)

    assert looked == [50, 50, 50]
    assert found.errors == errors.double().sum(1).tolist()


def test_of_equals_the_first_is_best() -> None:
    found, looked = run(torch.ones(3, 500))

    assert (found.best, looked) == (0, [500, 500, 500])


def test_one_candidate_needs_one_look() -> None:
    found, looked = run(noisy([1.0], 3))

    assert (found.best, looked) == (0, [128])


def test_what_is_not_a_number_is_not_dropped() -> None:
    found, looked = run(torch.full((2, 300), torch.nan), torch.ones(300))

    assert (found.best, looked) == (0, [300, 300])


def test_the_same_rows_are_drawn_every_time() -> None:
    errors = noisy([1.0, 1.5], 4)

    assert run(errors) == run(errors)
