"""Ranges: each scale is the best of its candidates, by each of the three measures."""

import pytest
import torch
from torch import Tensor

from helpers.solver_problems import FORMATS, problem
from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.ranges import all_e4m3_candidates, amax_candidates, search_amax
from octavo.core.formats import fake_quantize


def error_of(weight: Tensor, change: Tensor, gram: Tensor, length: int) -> Tensor:
    """Return the output error of each block alone, float64 [out, blocks]."""
    errors = []
    for start in range(0, weight.shape[1], length):
        part, corner = (
            change[:, start : start + length].double(),
            gram[start : start + length, start : start + length],
        )
        errors.append(torch.einsum("oi,ij,oj->o", part, corner.double(), part))
    return torch.stack(errors, 1)


@pytest.mark.parametrize("name", ["int4", "int3", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("measure", ["plain", "diagonal", "gram"])
def test_every_scale_is_the_best_of_its_candidates(name: str, measure: str) -> None:
    weight, gram = problem()
    spec = static(FORMATS[name])
    state = amax_state(weight, spec)
    matrix = {"plain": torch.eye(80), "diagonal": gram.diagonal().diag(), "gram": gram}[measure]
    options = {"plain": {}, "diagonal": {"diagonal": gram.diagonal()}, "gram": {"gram": gram}}[measure]
    candidates = list(amax_candidates(state["amax"], spec))
    found = search_amax(weight, state, spec, candidates, **options)
    length = 32 if name == "mxfp4" else 16

    def error(amax: Tensor) -> Tensor:
        change = fake_quantize(weight, list({**state, "amax": amax}.values()), spec) - weight
        return error_of(weight, change, matrix, length)

    least = torch.stack([error(amax) for amax in candidates]).amin(0)
    torch.testing.assert_close(error(found), least, rtol=1e-4, atol=0.0)
    assert (error(found).sum(1) < error(state["amax"]).sum(1)).any()


def test_one_scale_for_rows_or_for_all() -> None:
    weight, gram = problem()
    for name, shape in (("int8", (24,)), ("fp8", ())):
        state = amax_state(weight, FORMATS[name])
        multiples = (0.5, -0.5, 1.0, 0.9, -0.9)
        found = search_amax(
            weight, state, FORMATS[name], amax_candidates(state["amax"], FORMATS[name], multiples), gram=gram
        )
        assert found.shape == shape
        tried = torch.stack([state["amax"] * m for m in multiples])
        assert (tried == found).any(0).all()


def test_the_longer_side_of_an_integer_range_goes_to_the_larger_side_of_the_values() -> None:
    weight = torch.tensor([[8.0, -7.0, 3.0, -1.0], [-8.0, 7.0, 3.0, 1.0]])
    spec = FORMATS["int4"]
    state = amax_state(weight, spec)
    state["amax"] = search_amax(weight, state, spec, amax_candidates(state["amax"], spec, [1, 7 / 8, -7 / 8]))
    assert state["amax"].flatten().tolist() == [-7.0, 7.0]
    assert torch.equal(Grid.of(state, spec, (2, 4)).round(weight), weight)


def test_a_small_power_gives_an_outlier_up() -> None:
    weight = (torch.arange(16.0) - 8)[None]
    weight[0, 0] = -12.0
    spec = FORMATS["int4"]
    state = amax_state(weight, spec)
    multiples = [1, 7 / 12, 7 / 10]
    found = [
        search_amax(weight, state, spec, amax_candidates(state["amax"], spec, multiples), power=power)
        for power in (0.7, 8.0)
    ]
    assert [round(float(amax), 4) for amax in found] == [7.0, 12.0]


def test_four_over_six() -> None:
    weight = torch.zeros(2, 16)
    weight[0, :3] = torch.tensor(
        [4.0, 3.0, 2.0]
    )  # as they are with the code 4 for the largest; 6, 4.5, 3 with 6
    weight[1, :3] = torch.tensor([6.0, 4.0, 3.0])
    spec = static(FORMATS["nvfp4"])
    state = {"amax": weight.amax(1, keepdim=True), "global_amax": torch.tensor(2688.0)}
    found = search_amax(weight, state, spec, amax_candidates(state["amax"], spec, [1, 1.5]))
    assert found.flatten().tolist() == [6.0, 6.0]


def test_all_e4m3_scales() -> None:
    weight, _ = problem()
    spec = static(FORMATS["nvfp4"])
    state = amax_state(weight, spec)
    candidates = list(all_e4m3_candidates(state["amax"], state["global_amax"]))
    assert len(candidates) == 126
    assert len({float(Grid.of({**state, "amax": c}, spec, (24, 80)).step[0, 0]) for c in candidates}) == 126


def test_powers_of_two_move_by_one_exponent() -> None:
    weight, _ = problem()
    spec = static(FORMATS["mxfp4"])
    amax = amax_state(weight, spec)["amax"]
    steps = [Grid.of({"amax": c}, spec, (24, 80)).step for c in amax_candidates(amax, spec)]
    assert torch.equal(steps[1], steps[0] / 2)
    assert torch.equal(steps[2], steps[0] * 2)
