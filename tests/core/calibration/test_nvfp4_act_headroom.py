"""The algorithm `nvfp4_act_headroom`: ranges of NVFP4 inputs."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from helpers.calibration_models import calibrated_state, rows, two_layers
from octavo.core.calibration.solvers.activation_range import block_amax_counts, headroom_amax
from octavo.core.errors import ConfigError

DATA = [rows(count=50) ** 3, 3 * rows(seed=1, count=70)]


def quantized(preset: str = "NVFP4_DEFAULT_CFG", **options: Any) -> Any:
    algorithm = {"method": "nvfp4_act_headroom", **options}
    return octavo.quantize(two_layers(), {**octavo.preset(preset), "algorithm": algorithm}, DATA, quiet=True)


@pytest.mark.parametrize(
    "options", [{}, {"anchor_percentile": 20.0, "upper_percentile": 100.0, "rho": 400.0}], ids=str
)
def test_the_range_of_each_input(options: dict[str, Any]) -> None:
    model = quantized(**options)

    counts = sum(block_amax_counts(x) for x in DATA)
    largest = max(float(x.abs().max()) for x in DATA)
    expected = headroom_amax(counts, largest, **options)  # type: ignore[arg-type]
    assert float(model[0].input_quantizer.global_amax) == pytest.approx(expected, rel=1e-6)
    assert expected != largest
    row = octavo.history(model)[-1].state["report"]["weights"][0]
    assert row == {
        "weight": "0.weight",
        "algorithm": "nvfp4_act_headroom",
        "input_amax": pytest.approx(expected),
    }


def test_weights_are_those_of_the_algorithm_it_is_given() -> None:
    preset = "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG"
    model = quantized(preset, weight_scale_algorithm={"method": "mse", "fp8_scale_sweep": True})
    swept = octavo.quantize(two_layers(), octavo.preset(preset), DATA, quiet=True)

    found, expected = calibrated_state(model), calibrated_state(swept)
    assert {name for name in found if found[name] != expected[name]} == {
        "0.input_quantizer.global_amax",
        "1.input_quantizer.global_amax",
    }


def test_a_pinned_range_stays() -> None:
    config = octavo.preset("NVFP4_DEFAULT_CFG")
    inputs = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    config["quant_cfg"].append(
        {"quantizer_name": "*input_quantizer", "cfg": {**inputs, "constant_amax": 2688.0}}
    )
    config["algorithm"] = "nvfp4_act_headroom"

    model: Any = octavo.quantize(two_layers(), config, DATA, quiet=True)

    assert float(model[0].input_quantizer.global_amax) == 2688
    row = octavo.history(model)[-1].state["report"]["weights"][0]
    assert row["fallback"] == "the range there was: it is not the largest magnitude"


def test_no_input_to_set_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    octavo.quantize(two_layers(), {**octavo.FP8_DEFAULT_CFG, "algorithm": "nvfp4_act_headroom"}, DATA)

    assert "nvfp4_act_headroom found no NVFP4 inputs with calibrated ranges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 28672}, "rho=28672: Input should be less than 28672$"),
        ({"weight_scale_algorithm": "gptq"}, "method 'gptq'; expected one of max, mse, local_hessian$"),
        ({"anchor_percentile": 0}, "anchor_percentile=0: Input should be greater than 0$"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(**options)
