"""Calibration data that cannot be used is refused, and data that is not needed is not looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import rows, two_layers
from octavo.core.errors import CalibrationError, ConfigError

RAN_ZERO_TIMES = re.escape(
    "the forward loop ran the model 0 times; it must call the model, or be an iterable with at least one batch "
    "(a generator yields its batches only once)"
)


@pytest.mark.parametrize(
    ("batch", "found"),
    [("text", "str"), (7, "int"), (None, "NoneType"), (rows().numpy(), "ndarray")],
    ids=str,
)
def test_a_batch_of_another_type_is_refused_by_its_type(batch: Any, found: str) -> None:
    message = f"a calibration batch must be a tensor, a dict of arguments, or a tuple of them; found {found}$"

    with pytest.raises(ConfigError, match=message):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows(), batch], quiet=True)


def test_a_single_dict_in_place_of_a_list_of_dicts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"found str$"):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", {"input": rows()}, quiet=True)


def test_a_single_tensor_in_place_of_a_list_of_tensors_is_refused() -> None:
    with pytest.raises(ConfigError, match="Tensor"):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", rows(), quiet=True)


@pytest.mark.parametrize("kind", ["empty list", "exhausted generator", "idle callable", "submodule only"])
def test_a_loop_that_never_runs_the_model_is_refused(kind: str) -> None:
    exhausted = (batch for batch in [rows()])
    next(exhausted)
    loops: Mapping[str, Any] = {
        "empty list": [],
        "exhausted generator": exhausted,
        "idle callable": lambda _: None,
        "submodule only": lambda model: model[0](rows()),
    }

    with pytest.raises(CalibrationError, match=RAN_ZERO_TIMES):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", loops[kind], quiet=True)


def test_missing_data_names_the_quantizers_that_wait_for_it() -> None:
    message = (
        r"^2 quantizers need calibration data and no forward_loop \(--calib-data\) was given: 0.input_quantizer, "
        "1.input_quantizer$"
    )

    with pytest.raises(CalibrationError, match=message):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", quiet=True)


def test_missing_data_of_many_quantizers_counts_those_it_leaves_out() -> None:
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(7)))

    with pytest.raises(CalibrationError, match=r"4.input_quantizer and 2 more \(7 in all\)$"):
        octavo.quantize(model, "FP8_DEFAULT_CFG", quiet=True)


@pytest.mark.parametrize(
    "preset", ["INT8_WEIGHT_ONLY_CFG", "MXFP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG"]
)
def test_the_loop_is_not_run_when_no_quantizer_needs_it(preset: str) -> None:
    def never(_: nn.Module) -> None:
        raise AssertionError("run although nothing needs data")

    octavo.quantize(two_layers(), preset, never, quiet=True)


def test_an_error_inside_the_loop_comes_out_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [torch.randn(2, 5)], quiet=True)
