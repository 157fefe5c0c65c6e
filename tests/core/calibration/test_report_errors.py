"""What a weight's row says was lost, against plain arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.run import run_algorithms
from octavo.core.calibration.solvers.sqnr import decibels
from octavo.core.calibration.statistics import Needs
from octavo.core.formats import fake_quantize

X = torch.randn(40, 32, generator=torch.Generator().manual_seed(3)) * torch.logspace(-1, 1, 32)


def ratio(exact: Tensor, found: Tensor) -> float:
    exact = exact.detach().double()
    return float(10 * torch.log10(exact.square().sum() / (found.detach().double() - exact).square().sum()))


def errors_of(needs: Needs) -> tuple[nn.Module, dict[str, float | None]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    found: dict[str, Any] = {}

    class Halved(Algorithm):
        def needs(self) -> Needs:
            return needs

        def run(self, calibration: Calibration) -> None:
            (problem,) = calibration.problems()
            scale = torch.linspace(0.5, 2, 32)
            problem.layer.quantizers()["input_quantizer"].stages()[0].pre_quant_scale = 1 / scale
            problem.quantizer.pre_quant_scale = scale
            original = problem.weight()
            found.update(calibration.report_errors(problem, original, problem.rounded()))
            found["rounded"] = problem.rounded() / scale

    octavo.quantize(model, octavo.INT8_DEFAULT_CFG, [X], quiet=True)
    run_algorithms(model, [Halved()], [X], quiet=True)
    return model, found


@pytest.mark.parametrize("needs", [Needs(gram=True), Needs(gram=True, held_tokens=8)], ids=str)
def test_with_a_gram_the_output_is_that_of_all_tokens(needs: Needs) -> None:
    model, found = errors_of(needs)
    weight = model[0].weight  # type: ignore[index]
    scale = torch.linspace(0.5, 2, 32)

    assert found["output_sqnr_db"] == pytest.approx(ratio(X @ weight.T, X @ found["rounded"].T), rel=1e-3)
    assert found["weight_sqnr_db"] == pytest.approx(ratio(weight * scale, found["rounded"] * scale), rel=1e-5)


def test_with_held_tokens_inputs_are_rounded() -> None:
    model, found = errors_of(Needs(held_tokens=64))
    layer: Any = model[0]  # type: ignore[index]
    quantizer = layer.input_quantizer
    scale = torch.linspace(0.5, 2, 32)
    rounded = fake_quantize(X / scale, quantizer.state_tensors(), quantizer.spec) * scale

    expected = ratio(X @ layer.weight.T, rounded @ found["rounded"].T)
    assert found["output_sqnr_db"] == pytest.approx(expected, rel=1e-4)
    assert expected < ratio(X @ layer.weight.T, X @ found["rounded"].T)


def test_without_statistics_the_output_is_unknown() -> None:
    assert errors_of(Needs())[1]["output_sqnr_db"] is None


@pytest.mark.parametrize("energies", [(0, 1), (1, 0), (float("nan"), 1), (1, float("inf"))])
def test_what_is_no_ratio_is_none(energies: tuple[float, float]) -> None:
    assert decibels(*energies) is None
