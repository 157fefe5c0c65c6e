"""The solvers in turn: values of the grid that they leave, and less error than GPTQ alone."""

import pytest
import torch

from helpers.solver_problems import FORMATS, block, problem
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.objective import gram_error
from octavo.core.calibration.solvers.rounding import best_rounding, scales_are_of_rows
from octavo.core.formats import PerBlock, PerChannel, QuantSpec

MORE = {
    "int4 long": QuantSpec("int4", block(512)),
    "square": QuantSpec("e4m3", PerBlock(((-1, 16), (-2, 16)))),
}


@pytest.mark.parametrize("name", [*FORMATS, *MORE])
def test_values_are_of_the_grid_and_better_than_gptq_with_the_largest_magnitudes(name: str) -> None:
    weight, gram = problem()
    spec = static({**FORMATS, **MORE}[name])
    before = amax_state(weight, spec)

    rounded, state = best_rounding(weight, gram, before, spec)

    assert torch.allclose(Grid.of(state, spec, (24, 80)).round(rounded), rounded, rtol=1e-6, atol=0)
    grid = Grid.of(before, spec, (24, 80))
    # Exponents chosen on the way lose to fixed ones on random weights (and win on trained models).
    other = grid.round(weight) if name == "mxfp4" else gptq(weight, gram, grid).weight
    assert gram_error(rounded - weight, gram).sum() < gram_error(other - weight, gram).sum()
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in before.items()}


def test_rows_can_be_solved_together_where_scales_are_theirs() -> None:
    of = {name: scales_are_of_rows(spec) for name, spec in {**FORMATS, **MORE}.items()}

    assert [name for name, found in of.items() if not found] == ["fp8", "square"]
    assert not scales_are_of_rows(QuantSpec("int8", PerChannel(1)))
