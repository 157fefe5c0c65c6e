"""Refitted scales are the least-squares ones and make no row worse."""

import pytest
import torch

from helpers.solver_problems import FORMATS, problem
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.objective import gram_error
from octavo.core.calibration.solvers.refit import refit_amax


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "nvfp4", "mxfp4"])
def test_no_row_is_worse_and_codes_stay(name: str) -> None:
    weight, gram = problem()
    spec = static(FORMATS[name])
    state = amax_state(weight, spec)
    grid = Grid.of(state, spec, (24, 80))
    start = gptq(weight, gram, grid).weight
    codes = grid.codes(start)
    new = Grid.of({**state, "amax": refit_amax(weight, codes, gram, state, spec)}, spec, (24, 80))
    before, after = gram_error(start - weight, gram), gram_error(codes * new.step - weight, gram)
    assert (after <= before * (1 + 1e-5)).all()
    assert torch.equal(new.codes(codes * new.step), codes)
    if name != "mxfp4":  # powers of two are too far apart
        assert after.sum() < before.sum()


def test_one_scale_for_a_row_is_the_closed_form() -> None:
    weight, gram = problem()
    spec = FORMATS["int8"]
    state = amax_state(weight, spec)
    codes = Grid.of(state, spec, (24, 80)).codes(weight)
    amax = refit_amax(weight, codes, gram, state, spec)
    product = (codes.double() @ gram.double() * codes).sum(1)
    expected = (codes.double() @ gram.double() * weight).sum(1) / product * 127
    torch.testing.assert_close(amax.double(), expected, rtol=1e-5, atol=0.0)


def test_groups_of_zeros_keep_their_scale() -> None:
    weight, gram = problem()
    spec = FORMATS["int4"]
    state = amax_state(weight, spec)
    codes = Grid.of(state, spec, (24, 80)).codes(weight)
    codes[0, :16] = 0.0
    assert refit_amax(weight, codes, gram, state, spec)[0, 0] == state["amax"][0, 0]
