"""`constant_amax` pins a maximum: nothing is calibrated and no data is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import octavo
from helpers.calibration_models import FP8, calibrated_state, quantizer_config, rows, two_layers
from octavo.core.errors import ConfigError

NVFP4: dict[str, Any] = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}


@pytest.mark.parametrize(
    ("cfg", "name", "value"),
    [
        ({**FP8, "constant_amax": 3.5}, "amax", 3.5),
        ({**FP8, "use_constant_amax": True}, "amax", 448.0),
        ({**NVFP4, "constant_amax": 12.0}, "global_amax", 12.0),
    ],
)
def test_pinned_inputs_need_no_data(cfg: dict[str, Any], name: str, value: float) -> None:
    model = octavo.quantize(two_layers(), quantizer_config(input_quantizer=cfg), quiet=True)

    assert calibrated_state(model) == {f"{i}.input_quantizer.{name}": [value] for i in (0, 1)}


def test_data_does_not_move_a_pinned_maximum() -> None:
    config = quantizer_config(weight_quantizer=FP8, input_quantizer={**FP8, "constant_amax": 0.25})

    model = octavo.quantize(two_layers(), config, [rows() * 100], quiet=True)

    found = calibrated_state(model)
    assert found["0.input_quantizer.amax"] == [0.25]
    assert found["0.weight_quantizer.amax"] == [float(two_layers()[0].weight.detach().abs().max())]


def test_a_pinned_channel_maximum_fills_every_channel() -> None:
    cfg = {"num_bits": 8, "axis": 0, "constant_amax": 2.0}

    model = octavo.quantize(two_layers(), quantizer_config(weight_quantizer=cfg), quiet=True)

    assert calibrated_state(model)["1.weight_quantizer.amax"] == [2.0] * 16


def test_values_beyond_the_pinned_maximum_saturate() -> None:
    config = quantizer_config(input_quantizer={**FP8, "constant_amax": 1.0})
    model = octavo.quantize(two_layers(), config, quiet=True)

    with torch.no_grad():
        rounded = model[0].input_quantizer(torch.tensor([5.0, -7.0, 0.5]))  # type: ignore[index]

    assert rounded.tolist() == [1.0, -1.0, 0.5]


def test_two_ways_to_pin_contradict_each_other() -> None:
    config = quantizer_config(input_quantizer={**FP8, "constant_amax": 2.0, "use_constant_amax": True})

    with pytest.raises(ConfigError, match=r"0.input_quantizer: use_constant_amax excludes constant_amax=2.0"):
        octavo.quantize(two_layers(), config, quiet=True)
