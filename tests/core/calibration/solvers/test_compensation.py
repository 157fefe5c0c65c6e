"""Compensation is ridge regression around the weight, and nothing where nothing is missing."""

import torch

from helpers.solver_problems import problem
from octavo.core.calibration.solvers.compensation import compensated


def test_is_the_least_squares_weight() -> None:
    torch.manual_seed(0)
    weight, _ = problem(num_columns=32)
    wanted, changed = torch.randn(200, 32), torch.randn(200, 32)
    changed = wanted + 0.3 * changed
    found = compensated(weight, changed.T @ changed, changed.T @ (wanted - changed) @ weight.T, damping=0.0)
    expected = torch.linalg.lstsq(changed.double(), (wanted @ weight.T).double()).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    error = (changed @ found.T - wanted @ weight.T).square().sum()
    assert error < (changed @ weight.T - wanted @ weight.T).square().sum()


def test_damping_keeps_the_weight() -> None:
    weight, gram = problem()
    missing = torch.randn(80, 24)
    moved = [
        float((compensated(weight, gram, missing, damping=d) - weight).norm()) for d in (0.01, 1.0, 100.0)
    ]
    assert moved[0] > moved[1] > moved[2]
    assert torch.equal(compensated(weight, gram, 0 * missing), weight)


def test_a_share_goes_part_of_the_way() -> None:
    weight, gram = problem()
    missing = torch.randn(80, 24)
    whole = compensated(weight, gram, missing)

    torch.testing.assert_close(compensated(weight, gram, missing, share=0.5), (weight + whole) / 2)
