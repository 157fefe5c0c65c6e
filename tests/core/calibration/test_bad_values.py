"""NaN, infinity and layers that no data reaches are refused by the name of the module."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import Branches, rows, two_layers
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import CalibrationError

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def llama_with_bad_weight(value: float) -> nn.Module:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value  # type: ignore[union-attr, index]
    return model


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "preset",
    [
        "FP8_DEFAULT_CFG",
        "INT8_DEFAULT_CFG",
        "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        "NVFP4_DEFAULT_CFG",
        "MXFP8_DEFAULT_CFG",
        "MXFP4_DEFAULT_CFG",
    ],
)
def test_a_bad_weight_is_named_and_the_model_is_as_before(preset: str, value: str) -> None:
    model = llama_with_bad_weight(BAD[value])
    before = snapshot(model)
    message = (
        "^1 quantizers saw NaN or infinite values: model.layers.1.mlp.up_proj.weight_quantizer; look at these "
        "layers' weights and at the calibration data that reaches them$"
    )

    with pytest.raises(CalibrationError, match=message):
        octavo.quantize(model, preset, token_batches(1), quiet=True)

    assert snapshot(model) == before


@pytest.mark.parametrize("value", BAD)
def test_bad_calibration_data_is_named_by_the_first_layers_it_reaches(value: str) -> None:
    poisoned = rows(1)
    poisoned[2, 7] = BAD[value]

    with pytest.raises(
        CalibrationError, match=r"infinite values: 0.input_quantizer \(first in batch 1\), 1\."
    ):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows(), poisoned, rows(2)], quiet=True)


class Diverging(nn.Module):
    """Good weights and good data, and an overflow in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.exp(self.first(x) * 1e4))  # type: ignore[no-any-return]


def test_an_activation_that_overflows_inside_the_model_is_named() -> None:
    with pytest.raises(
        CalibrationError,
        match=r"^1 quantizers saw NaN or infinite values: second.input_quantizer \(first in batch 0\);",
    ):
        octavo.quantize(Diverging(), "FP8_DEFAULT_CFG", [rows()], quiet=True)


UNREACHED = (
    "^calibration data never reached 1 quantizers: rarely.input_quantizer; give data that runs these layers, or "
    "exclude them$"
)


def test_a_layer_that_no_data_reaches_is_named() -> None:
    with pytest.raises(CalibrationError, match=UNREACHED):
        octavo.quantize(Branches(), "FP8_DEFAULT_CFG", [rows()], quiet=True)


def test_a_layer_that_saw_only_empty_tensors_counts_as_not_reached() -> None:
    loop = [rows(), {"x": rows()[:0], "both": True}]

    with pytest.raises(CalibrationError, match=UNREACHED):
        octavo.quantize(Branches(), "FP8_DEFAULT_CFG", loop, quiet=True)


def test_one_batch_that_reaches_it_is_enough() -> None:
    model = octavo.quantize(Branches(), "FP8_DEFAULT_CFG", [rows(), {"x": rows(), "both": True}], quiet=True)

    with torch.no_grad():
        assert model(rows(3), both=True).isfinite().all()


def test_weight_only_formats_need_no_data_to_reach_a_layer() -> None:
    octavo.quantize(Branches(), "INT8_WEIGHT_ONLY_CFG", quiet=True)
