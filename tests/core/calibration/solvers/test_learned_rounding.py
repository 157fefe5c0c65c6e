"""Learned rounding: what training starts from, its gradients, and results on the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.calibration.solvers.grid import Grid, amax_state, static
from octavo.core.calibration.solvers.learned_rounding import LearnedRounding, RoundedWeight, unrounded
from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec, fake_quantize

G16 = PerBlock(((-1, 16),))
SPECS = [
    QuantSpec("int4", G16),
    QuantSpec("int3", G16, arithmetic="divide"),
    QuantSpec("int4", PerBlock(((-1, 20),))),  # padded
    QuantSpec("int8", PerChannel(0)),
    QuantSpec("e4m3", PerTensor()),
    QuantSpec("e2m1", G16, "e4m3", 2688.0),
    QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", scale_rounding="even"),
]


def start_of(spec: QuantSpec, dtype: torch.dtype = torch.float32) -> RoundedWeight:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    return RoundedWeight(weight, amax_state(weight, spec), static(spec))


def rounded(found: RoundedWeight) -> Tensor:
    return fake_quantize(found.weight, [found.state[name] for name in found.spec.state], found.spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_starts_from_the_starts_codes(spec: QuantSpec, dtype: torch.dtype) -> None:
    start = start_of(spec, dtype)

    learned = LearnedRounding(start)

    assert torch.equal(learned.result().weight, rounded(start))
    assert torch.equal(learned.value().to(dtype), rounded(start))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_of_training_are_those_of_the_result_and_lie_on_its_grid(spec: QuantSpec) -> None:
    learned = LearnedRounding(start_of(spec))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        learned.codes += torch.randn(learned.codes.shape, generator=generator)
        if learned.ranges is not None:
            learned.ranges *= 0.7 + 0.6 * torch.rand(learned.ranges.shape, generator=generator)

    result = learned.result()

    assert torch.equal(learned.value(), result.weight)
    assert torch.equal(rounded(result), result.weight)


def test_gradients_pass_the_rounding_straight_through() -> None:
    weight = torch.tensor([[0.6, -1.3, 7.0, 2.2]])
    start = RoundedWeight(weight, {"amax": torch.tensor(3.5)}, QuantSpec("int4", arithmetic="divide"))
    learned = LearnedRounding(start)  # steps of 0.5: codes 1.2, -2.6, 14 (saturates at 7), 4.4

    learned.value().backward(torch.tensor([[1.0, 10.0, 100.0, -1.0]]))

    torch.testing.assert_close(learned.codes.grad, torch.tensor([[0.5, 5.0, 0.0, -0.5]]))
    assert learned.ranges is not None
    assert learned.ranges.grad is not None
    # By LSQ: step · (code − exact) inside the range, step · code beyond it.
    expected = 0.5 * ((1 - 1.2) + 10 * (-3 + 2.6) + 100 * 7 - (4 - 4.4))
    assert learned.ranges.grad.item() == pytest.approx(expected, rel=1e-5)


def test_ranges_of_powers_of_two_stay() -> None:
    assert LearnedRounding(start_of(SPECS[-1])).ranges is None


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_codes_of_another_algorithm_are_kept_and_lie_as_near_as_they_can(spec: QuantSpec) -> None:
    start = start_of(spec)
    grid = Grid.of(start.state, start.spec, (8, 64))
    nearest = grid.round(start.weight)
    other = grid.round(start.weight + grid.step * torch.randint(-1, 2, (8, 64)))

    found = unrounded(other, start.weight, grid)

    assert torch.equal(grid.round(found), other)
    assert ((found - start.weight).abs() <= (other - start.weight).abs()).all()
    assert torch.equal(found[other == nearest], (other + (start.weight - other))[other == nearest])
    assert (found != other)[start.weight != nearest].float().mean() > 0.8


def test_dynamic_scales_are_refused() -> None:
    start = RoundedWeight(torch.ones(2, 32), {}, QuantSpec("int4", G16, dynamic=True))

    with pytest.raises(UnsupportedError, match="expected static scales of one weight"):
        LearnedRounding(start)
