"""The algorithm of a config: every form it may have, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import octavo
from helpers.calibration_models import calibrated_state, rows, two_layers
from helpers.calibration_snapshot import snapshot
from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.max import Max
from octavo.core.errors import ConfigError, UnsupportedError

AVAILABLE = "; available: learned_rounding, max, mse$"
KNOWN = "known: max, mse, learned_rounding, local_hessian, smoothquant, awq_lite, awq_clip, awq_full, svdquant, gptq"


@pytest.mark.parametrize(
    ("algorithm", "count"),
    [
        (None, 0),
        ("max", 1),
        ({"method": "max"}, 1),
        (["max", {"method": "max"}], 2),
        (("max",), 1),
        ([None, "max"], 1),
        ([["max"], "max"], 2),
    ],
    ids=str,
)
def test_every_form_names_its_algorithms(algorithm: Any, count: int) -> None:
    assert algorithms_of(algorithm) == [Max()] * count


def test_max_twice_calibrates_once() -> None:
    runs: list[int] = []

    def loop(model: Any) -> None:
        runs.append(1)
        model(rows())

    octavo.quantize(
        two_layers(), {**octavo.FP8_DEFAULT_CFG, "algorithm": ["max", {"method": "max"}]}, loop, quiet=True
    )

    assert runs == [1]


@pytest.mark.parametrize(
    "name",
    ["local_hessian", "smoothquant", "awq_lite", "awq_clip", "awq_full", "svdquant", "gptq", "lsq"],
)
@pytest.mark.parametrize("form", [lambda n: n, lambda n: {"method": n, "alpha": 1.0}, lambda n: ["max", n]])
def test_an_algorithm_that_is_not_there_yet_is_named(name: str, form: Any) -> None:
    message = f"^algorithm '{name}' is not available in this version of Octavo{AVAILABLE}"

    with pytest.raises(UnsupportedError, match=message):
        algorithms_of(form(name))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("maxx", f"unknown algorithm 'maxx'; {KNOWN}.*Did you mean 'max'\\?$"),
        ("smoothquantt", "unknown algorithm 'smoothquantt'.*Did you mean 'smoothquant'\\?$"),
        ({"method": None}, "unknown algorithm None; known: max"),
        ({"method": "max", "alpha": 1}, "^algorithm 'max' takes the options all_experts, found alpha$"),
        ({"method": "max", "b": 1, "a": 1}, "found a, b$"),
        (
            {"method": "mse", "stepsize": 1},
            "^algorithm 'mse' takes the options step_size, .*, found stepsize. Did you mean 'step_size'",
        ),
        ({"method": "mse", "step_size": 0}, "^algorithm 'mse': step_size=0: Input should be greater than 0$"),
        (
            {"method": "mse", "stop_multiplier": 0.1},
            "^algorithm 'mse': stop_multiplier=0.1 is below start_multiplier=0.25; exchange them$",
        ),
        ({"method": "mse", "fp8_scale_sweep": 1}, "fp8_scale_sweep=1: Input should be a valid boolean$"),
        ({"name": "max"}, r"must be a name, a dict with 'method', a list or None; found \{'name': 'max'\}$"),
        (5, "found 5$"),
        (["max", 5], "found 5$"),
        ({"method": ["max"]}, r"unknown algorithm \['max'\]; known: max"),
    ],
    ids=str,
)
def test_wrong_forms_are_refused(algorithm: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithms_of(algorithm)


@pytest.mark.parametrize("algorithm", ["awq_lite", "maxx", {"method": "max", "x": 1}], ids=str)
def test_a_refused_algorithm_leaves_the_model_as_it_was(algorithm: Any) -> None:
    model = two_layers()
    before = snapshot(model)

    with pytest.raises(octavo.OctavoError):
        octavo.quantize(model, {**octavo.FP8_DEFAULT_CFG, "algorithm": algorithm}, [rows()], quiet=True)

    assert snapshot(model) == before


def test_without_an_algorithm_weights_are_calibrated_all_the_same() -> None:
    model = octavo.quantize(two_layers(), {**octavo.FP8_DEFAULT_CFG, "algorithm": None}, quiet=True)

    assert calibrated_state(model)["0.weight_quantizer.amax"] == [float(model[0].weight.detach().abs().max())]  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert model(rows()).isfinite().all()


def test_data_that_is_not_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = {**octavo.FP8_DEFAULT_CFG, "algorithm": None}
    said = (
        "octavo: warning: the algorithm is None, so the calibration data was not run and calibrated nothing"
    )

    model = octavo.quantize(two_layers(), config, [rows()])
    assert said in capsys.readouterr().err
    octavo.calibrate(model, None, [rows()])
    assert said in capsys.readouterr().err
    octavo.quantize(two_layers(), config)
    assert said not in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", [[], [None]], ids=str)
def test_an_empty_list_of_algorithms_means_none(algorithm: Any) -> None:
    model = octavo.quantize(
        two_layers(), {**octavo.FP8_DEFAULT_CFG, "algorithm": algorithm}, [rows()], quiet=True
    )

    with torch.no_grad():
        assert model(rows()).isfinite().all()
