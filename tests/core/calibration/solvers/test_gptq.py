"""GPTQ against a plain reference that removes one column after the other from the problem."""

import math

import pytest
import torch
from torch import Tensor

from helpers.solver_problems import FORMATS, problem
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.grid import Grid, amax_state
from octavo.core.errors import CalibrationError


def column_by_column(weight: Tensor, gram: Tensor, grid: Grid, act_order: bool, damping: float) -> Tensor:
    """Round a column, move the others to their least-squares optimum with it fixed, and go on (float64)."""
    weight, gram = weight.double(), gram.double()
    gram = gram + damping * gram.diagonal().mean() * torch.eye(len(gram))
    left = list(range(len(gram)))
    if act_order:
        left.sort(key=lambda column: -float(gram[column, column]))
    current, result = weight.clone(), torch.empty_like(weight)
    while left:
        column, left = left[0], left[1:]
        result[:, column] = grid.round(current[:, [column]].float(), slice(column, column + 1))[:, 0]
        change = result[:, column] - current[:, column]
        if left:
            response = torch.linalg.solve(gram[left][:, left], gram[left, column])
            current[:, left] -= torch.outer(change, response)
    return result.float()


def output_error(change: Tensor, gram: Tensor) -> float:
    """Return the squared output error of a change of the weight, summed over rows and tokens."""
    return float(torch.einsum("oi,ij,oj->", change, gram, change))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("act_order", [False, True])
def test_equals_the_plain_reference(name: str, act_order: bool) -> None:
    weight, gram = problem()
    grid = Grid.of(amax_state(weight, FORMATS[name]), FORMATS[name], (24, 80))
    result = gptq(weight, gram, grid, act_order=act_order, block=32)
    expected = column_by_column(weight, gram, grid, act_order, 0.01)
    assert float((result.weight - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(result.weight, grid.round(result.weight))
    assert torch.equal(result.weight, grid.round(result.unrounded))
    assert output_error(result.weight - weight, gram) < output_error(grid.round(weight) - weight, gram)


def test_dead_columns_are_rounded_to_nearest() -> None:
    weight, gram = problem()
    gram[[3, 40]] = 0.0
    gram[:, [3, 40]] = 0.0
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    result = gptq(weight, gram, grid)
    assert result.num_dead == 2
    assert torch.equal(result.weight[:, [3, 40]], grid.round(weight)[:, [3, 40]])
    nothing = gptq(weight, torch.zeros_like(gram), grid)
    assert nothing.num_dead == 80
    assert torch.equal(nothing.weight, grid.round(weight))


def test_damping_is_raised_until_the_matrix_is_positive_definite() -> None:
    weight, gram = problem()
    tokens = torch.randn(5, 80)  # too few for 80 channels
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    few = tokens.T @ tokens
    result = gptq(weight, few - 1e-4 * torch.eye(80), grid, damping=0.0)
    assert 1e-6 <= result.damping <= 1e-3
    assert output_error(result.weight - weight, few) < output_error(grid.round(weight) - weight, few)
    assert gptq(weight, gram, grid, damping=0.02).damping == 0.02


def test_refuses_what_is_no_gram_matrix() -> None:
    weight, gram = problem()
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    with pytest.raises(
        CalibrationError, match=r"\[80, 80\] is not positive definite, even with damping 1000"
    ):
        gptq(weight, torch.eye(80) - 1e6 * (1 - torch.eye(80)), grid)
    gram[0, 0] = math.nan
    with pytest.raises(CalibrationError, match="not finite; look for inf or NaN in the calibration data"):
        gptq(weight, gram, grid)
