"""Static scales need a state of fixed shape: along dims of activations that vary there is none."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.config_rules import entry, weights
from helpers.plan_models import new_model, planned, tokens
from octavo.core.errors import ConfigError, OctavoError
from octavo.core.plan import Plan

MODEL = nn.ModuleDict({"up": nn.Linear(32, 16)})
VARIES: dict[str, dict[str, Any]] = {
    "int8 channel0": {"axis": 0},
    "int8 token": {"block_sizes": {-1: None}},
    "int8 block{-1:16}": {"block_sizes": {-1: 16}},
    "e2m1 block{-1:16} e4m3·global": {"num_bits": (2, 1), "block_sizes": {-1: 16, "scale_bits": (4, 3)}},
}


def with_inputs(cfg: dict[str, Any], quantizer: str = "*input_quantizer") -> Plan:
    return planned(weights({"num_bits": 8}, entry(quantizer, cfg)), MODEL)


@pytest.mark.parametrize("spec", VARIES)
def test_static_scales_along_rows(spec: str) -> None:
    expected = (
        f"up.input_quantizer: static scales of {spec} follow a dim that varies from call to call; "
        "make the quantizer dynamic, or use one scale per tensor (axis None) or per feature (axis -1)"
    )

    assert with_inputs(VARIES[spec]).errors == (expected,)
    assert with_inputs(VARIES[spec], "*output_quantizer").errors == (expected.replace("input", "output"),)


@pytest.mark.parametrize(
    "cfg",
    [
        {"axis": None},
        {"axis": -1},
        {"axis": 0, "type": "dynamic"},
        {"block_sizes": {-1: None, "type": "dynamic"}},
    ],
    ids=str,
)
def test_scales_of_fixed_shape_or_none(cfg: dict[str, Any]) -> None:
    assert with_inputs(cfg).errors == ()


def test_queries_keys_and_values() -> None:
    config = octavo.merge_configs(
        "FP8_DEFAULT_CFG", {"quant_cfg": [entry("*k_bmm_quantizer", {"num_bits": 8, "axis": 1})]}
    )
    assert [error.partition(":")[0] for error in planned(config).errors] == [
        f"model.layers.{i}.self_attn.k_bmm_quantizer" for i in (0, 1)
    ]
    config["quant_cfg"][-1]["cfg"]["axis"] = -1
    assert planned(config).errors == ()


def test_a_positive_axis_of_an_input_of_unknown_rank() -> None:
    """Calibration then fails with `amax of int8 channel1 has shape (128,), found (12,)`, naming no layer."""
    config = weights({"num_bits": 8}, entry("*input_quantizer", {"num_bits": 8, "axis": 1}))
    model = new_model(num_hidden_layers=1)
    try:
        octavo.quantize(model, config, [tokens()], quiet=True)
    except OctavoError as error:
        assert "input_quantizer" in str(error)  # noqa: PT017 (either it works, or the error names the quantizer)


@pytest.mark.parametrize("cfg", [{"axis": 5}, {"block_sizes": {-3: 16}}], ids=str)
def test_axes_that_do_not_exist(cfg: dict[str, Any]) -> None:
    try:
        errors = " ".join(planned(weights(cfg), MODEL).errors)
    except ConfigError as error:
        errors = str(error)

    assert "up.weight_quantizer" in errors
    assert str(next(iter(cfg.get("block_sizes", {5: 0})))) in errors
