"""Calibrators chosen in a config, quantizer by quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import calibrated_state, quantizer_config, rows, two_layers
from octavo.core.errors import CalibrationError, ConfigError
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import Calibrator

INT8: dict[str, Any] = {"num_bits": 8, "axis": None}
BATCHES = [rows(seed, count=200) for seed in range(3)]


def quantized(calibrator: Any, batches: Any = BATCHES) -> nn.Module:
    config = quantizer_config(
        weight_quantizer={"num_bits": 8, "axis": 0}, input_quantizer={**INT8, "calibrator": calibrator}
    )
    return octavo.quantize(two_layers(), config, batches, quiet=True)


def input_amax(model: nn.Module) -> float:
    return float(calibrated_state(model)["0.input_quantizer.amax"][0])


def test_each_method_in_every_form_clips_its_own_way() -> None:
    seen = torch.cat(BATCHES).abs()
    amax = {
        str(form): input_amax(quantized(form))
        for form in (
            "max",
            {"method": "max"},
            "entropy",
            "histogram",
            "mse",
            {"method": "mse", "num_bins": 1024},
            {"method": "percentile", "percentile": 90},
        )
    }
    assert amax["max"] == amax["{'method': 'max'}"] == float(seen.max())
    assert amax["entropy"] == amax["histogram"] < amax["max"]
    assert amax["mse"] < amax["max"]
    assert amax["{'method': 'mse', 'num_bins': 1024}"] == pytest.approx(amax["mse"], rel=0.02)
    within = (seen <= amax["{'method': 'percentile', 'percentile': 90}"]).double().mean()
    assert 0.9 <= within < 0.905


def test_one_run_of_the_data_serves_quantizers_with_different_calibrators() -> None:
    config = quantizer_config(
        weight_quantizer={**INT8, "calibrator": {"method": "percentile", "percentile": 99}},
        input_quantizer=INT8,
        output_quantizer={**INT8, "calibrator": "mse"},
    )
    config["quant_cfg"].append(
        {"quantizer_name": "1.input_quantizer", "cfg": {**INT8, "calibrator": {"method": "entropy"}}}
    )
    runs = []

    def loop(model: nn.Module) -> None:
        runs.append(1)
        for x in BATCHES:
            model(x)

    model = octavo.quantize(two_layers(), config, loop, quiet=True)

    assert runs == [1]
    methods = {name: quantizer.calibrator.method for name, quantizer in tensor_quantizers(model)}
    assert methods["0.input_quantizer"] == "max"
    assert methods["1.input_quantizer"] == "entropy"
    assert methods["0.output_quantizer"] == methods["1.output_quantizer"] == "mse"
    assert input_amax(model) == float(torch.cat(BATCHES).abs().max())
    weight = model[0].weight.detach().abs()  # type: ignore[index]
    clipped = (weight > calibrated_state(model)["0.weight_quantizer.amax"][0]).double().mean()
    assert 0 < clipped <= 0.01


def test_the_order_of_the_data_does_not_matter() -> None:
    for calibrator in ("entropy", "mse", "percentile"):
        assert calibrated_state(quantized(calibrator)) == calibrated_state(
            quantized(calibrator, BATCHES[::-1])
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_reported_by_module(value: float) -> None:
    bad = rows()
    bad[1, 2] = value
    with pytest.raises(CalibrationError, match=r"saw NaN or infinite values: .*0\.input_quantizer"):
        quantized("entropy", [rows(), bad, rows()])


def test_a_saved_model_still_knows_its_calibrators(tmp_path: Path) -> None:
    calibrator = {"method": "percentile", "num_bins": 512, "percentile": 99.0}
    octavo.save(quantized(calibrator), tmp_path / "saved")

    restored = octavo.restore(two_layers(), tmp_path / "saved")

    found = {name: quantizer.calibrator for name, quantizer in tensor_quantizers(restored)}
    assert found["0.input_quantizer"] == Calibrator("percentile", 512, 99.0)
    assert found["0.weight_quantizer"] == Calibrator("max")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"calibrator": "entropie"}, "unknown calibrator 'entropie'; known: max, .*Did you mean 'entropy'"),
        ({"calibrator": {"num_bins": 512}}, "unknown calibrator 'None'; known: max"),
        ({"calibrator": {"method": "max", "num_bins": 512}}, "'max' has no option 'num_bins'; .*: none"),
        (
            {"calibrator": {"method": "percentile", "percentil": 99}},
            "'percentile' has no option 'percentil'.*Did you mean 'percentile'",
        ),
        (
            {"calibrator": {"method": "mse", "num_bins": 1000}},
            "num_bins=1000; expected a power of two from 256",
        ),
        ({"calibrator": {"method": "mse", "num_bins": "512"}}, "num_bins='512'; expected a power of two"),
        (
            {"calibrator": {"method": "percentile", "percentile": 0}},
            "percentile=0; expected a number above 0",
        ),
        ({"calibrator": {"method": "percentile", "percentile": 101}}, "percentile=101; expected"),
        (
            {"calibrator": "mse", "axis": -1},
            "'mse' finds one static amax per tensor, and int8 channel-1 needs",
        ),
        ({"calibrator": "mse", "type": "dynamic"}, "and int8 tensor dynamic needs none"),
        ({"calibrator": "entropy", "num_bits": (4, 3)}, "for integer formats.*found e4m3 tensor"),
        ({"calibrator": "mse", "constant_amax": 2.0}, r"'mse' excludes constant_amax=2\.0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_the_plan(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^0\.input_quantizer: .*{message}"):
        octavo.plan(two_layers(), quantizer_config(input_quantizer={"num_bits": 8, **attributes}))
