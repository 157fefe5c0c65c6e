"""Weights that make up for a rounded input."""

from __future__ import annotations

import torch

from octavo.core.calibration.solvers.compensation import compensated


def rounded_layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(200, 8) @ torch.randn(8, 8)
    return torch.randn(5, 8), x, (x / 2).round() * 2


def test_all_of_the_way_is_the_least_squares_weight() -> None:
    weight, x, y = rounded_layer()

    found = compensated(weight, x.T @ y, y.T @ y, share=1.0, damping=1e-7)

    expected = torch.linalg.lstsq(y, x @ weight.T).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_half_of_the_way_is_between_and_damping_holds_back() -> None:
    weight, x, y = rounded_layer()
    cross, gram = x.T @ y, y.T @ y
    full = compensated(weight, cross, gram, share=1.0)

    torch.testing.assert_close(compensated(weight, cross, gram), (weight + full) / 2)
    assert (compensated(weight, cross, gram, 1.0, damping=1.0) - weight).norm() < (full - weight).norm()


def test_inputs_without_rounding_or_without_values_change_nothing() -> None:
    weight, x, _ = rounded_layer()
    x[:, 3] = 0
    zero = torch.zeros(8, 8)

    torch.testing.assert_close(compensated(weight, x.T @ x, x.T @ x), weight)
    assert torch.equal(compensated(weight, zero, zero), weight)
