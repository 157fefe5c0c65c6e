"""Weights as problems: what an algorithm sees of them, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.run import run_algorithms
from octavo.core.calibration.statistics import Needs
from octavo.core.formats import fake_quantize
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedTensor

FORMATS = ["INT8_DEFAULT_CFG", "FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "MXFP4_DEFAULT_CFG"]
DATA = [torch.randn(5, 32, generator=torch.Generator().manual_seed(3)) for _ in range(2)]


class Halve(Algorithm):
    """Round weights that were halved, under the scales of the whole ones."""

    fails: bool = False

    def needs(self) -> Needs:
        return Needs(gram=True, held_tokens=4)

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            halved = problem.grid().round(problem.weight() / 2)
            problem.set_state(problem.state())
            calibration.set_weight(problem, halved)
            calibration.report(problem, "halve", tokens=problem.statistics.num_tokens)  # type: ignore[union-attr]
        if self.fails:
            raise KeyboardInterrupt


def quantized(preset: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64))
    return octavo.quantize(model, octavo.preset(preset), DATA, quiet=True)  # type: ignore[return-value]


@pytest.mark.parametrize("preset", FORMATS)
def test_codes_that_an_algorithm_chose_are_those_that_are_stored(preset: str) -> None:
    model = quantized(preset)
    before = {name: layer.weight.clone() for name, layer in quantized_layers(model)}  # type: ignore[operator]

    rows, _ = run_algorithms(model, [Halve()], DATA, quiet=True)

    for (name, layer), row in zip(quantized_layers(model), rows, strict=True):
        quantizer: Any = layer.weight_quantizer
        weight: Any = layer.weight
        assert not quantizer.spec.dynamic
        assert row == {"weight": f"{name}.weight", "algorithm": "halve", "tokens": 10}
        assert torch.equal(fake_quantize(weight, quantizer.state_tensors(), quantizer.spec), weight)
        packed = PackedTensor.pack(weight.detach(), quantizer.state_tensors(), quantizer.spec)
        assert torch.equal(packed.dequantize(), weight)
        assert (weight - before[name] / 2).abs().max() < before[name].abs().max() / 3


@pytest.mark.parametrize("preset", FORMATS)
def test_an_interrupt_leaves_the_weights_as_they_were(preset: str) -> None:
    model = quantized(preset)
    before = {name: layer.weight.clone() for name, layer in quantized_layers(model)}  # type: ignore[operator]

    with pytest.raises(KeyboardInterrupt):
        run_algorithms(model, [Halve(fails=True)], DATA, quiet=True)

    for name, layer in quantized_layers(model):
        assert torch.equal(layer.weight, before[name])  # type: ignore[arg-type]


def test_layers_that_read_one_tensor_share_its_statistics() -> None:
    model = quantized("INT8_DEFAULT_CFG")
    statistics = {}

    class Look(Halve):
        def run(self, calibration: Calibration) -> None:
            statistics.update({problem.name: problem.statistics for problem in calibration.problems()})

    run_algorithms(model, [Look()], DATA, quiet=True, groups=[["0", "2"]])

    assert statistics["0.weight"] is statistics["2.weight"]


def test_factors_of_inputs_and_weights_are_part_of_what_a_problem_sees() -> None:
    model = quantized("INT8_DEFAULT_CFG")
    found: list[Any] = []

    class Look(Halve):
        def run(self, calibration: Calibration) -> None:
            problem = next(calibration.problems())
            scale = torch.linspace(0.5, 2, 32)
            plain = problem.gram(), problem.held_tokens(), problem.weight()
            problem.layer.quantizers()["input_quantizer"].stages()[0].pre_quant_scale = 1 / scale
            problem.quantizer.pre_quant_scale = scale
            found.extend([scale, plain, (problem.gram(), problem.held_tokens(), problem.weight())])

    run_algorithms(model, [Look()], DATA, quiet=True)

    scale, (gram, tokens, weight), (scaled_gram, scaled_tokens, scaled_weight) = found
    torch.testing.assert_close(scaled_gram, gram / scale / scale[:, None])
    torch.testing.assert_close(scaled_tokens, tokens / scale)
    torch.testing.assert_close(scaled_weight, weight * scale)


def test_statistics_name_the_batch_that_is_not_finite() -> None:
    model = quantized("INT8_DEFAULT_CFG")
    broken = [DATA[0], DATA[1] * torch.tensor(float("nan"))]

    with pytest.raises(
        octavo.CalibrationError, match=r"^0\.input_quantizer saw NaN or .* in batch 1 \(counted from 0\)"
    ):
        run_algorithms(model, [Halve()], broken, quiet=True)


def test_factors_are_saved_and_restored(tmp_path: Path) -> None:
    model = quantized("INT8_DEFAULT_CFG")
    scale = torch.linspace(0.5, 2, 32)
    model[0].input_quantizer.pre_quant_scale = 1 / scale
    model[0].weight_quantizer.pre_quant_scale = scale
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(
        nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64)), tmp_path / "saved"
    )

    assert torch.equal(restored(DATA[0]), model(DATA[0]))
    assert not torch.equal(model(DATA[0]), quantized("INT8_DEFAULT_CFG")(DATA[0]))


def test_a_model_whose_weights_changed_is_not_unquantized() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64))
    config = {**octavo.INT8_WEIGHT_ONLY_CFG, "algorithm": "gptq"}
    octavo.quantize(model, config, [torch.randn(64, 32)], quiet=True)

    with pytest.raises(
        octavo.ModeError, match=r"gave 2 weights other values \(0\.weight, 2\.weight\), and the orig"
    ):
        octavo.unquantize(model)
