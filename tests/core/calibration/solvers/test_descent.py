"""Coordinate descent never makes a row worse, finds single flips, and stays on the grid."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.solver_problems import FORMATS, problem
from octavo.core.calibration.solvers.descent import descend, unrounded_optimum
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.grid import Grid, amax_state
from octavo.core.calibration.solvers.objective import gram_error


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.sampled_from(sorted(FORMATS)), st.booleans(), st.sampled_from([7, 128]))
def test_no_row_is_worse_than_it_was(seed: int, name: str, from_gptq: bool, block: int) -> None:
    weight, gram = problem(seed=seed)
    grid = Grid.of(amax_state(weight, FORMATS[name]), FORMATS[name], (24, 80))
    start = gptq(weight, gram, grid).weight if from_gptq else grid.round(weight)
    result = descend(weight, start, gram, grid, block=block)
    assert torch.equal(result, grid.round(result))
    before, after = (gram_error((new - weight).double(), gram.double()) for new in (start, result))
    assert (after <= before * (1 + 1e-6)).all()
    if not from_gptq:
        assert after.sum() < 0.9 * before.sum() or name in ("fp8", "int8")


def test_ends_where_no_single_change_helps() -> None:
    weight, gram = problem()
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    result = descend(weight, grid.round(weight), gram, grid, sweeps=100)
    least = gram_error(result - weight, gram)
    for column in range(80):
        for code in range(-8, 8):
            other = result.clone()
            other[:, column] = code * grid.step[:, column]
            assert (gram_error(other - weight, gram) >= least * (1 - 1e-5)).all()


def test_values_before_rounding_are_the_best_ones_beside_the_others_and_round_to_the_result() -> None:
    weight, gram = problem()
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    result = descend(weight, grid.round(weight), gram, grid, sweeps=100)
    found = unrounded_optimum(result, weight, gram)
    assert torch.equal(grid.round(found), result)
    for column in (0, 41):
        moved = result.clone()
        moved[:, column] = found[:, column]
        slope = ((moved - weight) @ gram)[:, column]  # of the error, by the column's values
        assert slope.abs().max() < 1e-4 * (weight @ gram).abs().max()


def test_dead_columns_stay() -> None:
    weight, gram = problem()
    gram[5] = 0.0
    gram[:, 5] = 0.0
    grid = Grid.of(amax_state(weight, FORMATS["int4"]), FORMATS["int4"], (24, 80))
    start = grid.round(weight)
    assert torch.equal(descend(weight, start, gram, grid)[:, 5], start[:, 5])
