"""GPTQ that chooses scales on the way: one multiple is GPTQ itself, more of them are better."""

import pytest
import torch
from torch import Tensor

from helpers.solver_problems import FORMATS, problem
from octavo.core.calibration.solvers.gptq import gptq
from octavo.core.calibration.solvers.gptq_ranges import gptq_ranges
from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.objective import gram_error


def sorted_problem() -> tuple[Tensor, Tensor]:
    """Return a problem whose columns are in act-order, so that groups of neighbours keep to it."""
    weight, gram = problem()
    order = gram.diagonal().argsort(descending=True)
    return weight[:, order], gram[order][:, order]


NAMES = ["int8", "int4", "int3", "nvfp4", "mxfp4"]


@pytest.mark.parametrize("name", NAMES)
def test_with_one_multiple_it_is_gptq(name: str) -> None:
    weight, gram = sorted_problem()
    spec = static(FORMATS[name])
    state = amax_state(weight, spec)
    rounded, amax = gptq_ranges(weight, gram, state, spec, multiples=[1.0])
    expected = gptq(weight, gram, Grid.of(state, spec, (24, 80))).weight
    assert torch.equal(amax, state["amax"])
    assert float((rounded - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", NAMES[1:])
def test_scales_chosen_on_the_way_are_better(name: str) -> None:
    weight, gram = sorted_problem()
    spec = static(FORMATS[name])
    state = amax_state(weight, spec)
    rounded, state["amax"] = gptq_ranges(weight, gram, state, spec)
    grid = Grid.of(state, spec, (24, 80))
    assert torch.equal(rounded, grid.round(rounded))
    fixed = gptq(weight, gram, Grid.of(amax_state(weight, spec), spec, (24, 80))).weight
    assert gram_error(rounded - weight, gram).sum() < gram_error(fixed - weight, gram).sum()
