"""Ctrl-C in the middle of any algorithm, after it changed a weight or a scale: the model is exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration import mse
from octavo.core.calibration.algorithms import ALGORITHMS
from octavo.core.calibration.calibration import Calibration

# A preset whose formats the algorithm knows.
PRESETS = {
    "compensate": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "local_hessian": "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG",
    "gptq": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "nvfp4_act_headroom": "NVFP4_DEFAULT_CFG",
    "hqq": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "smoothquant": "INT8_SMOOTHQUANT_CFG",
    "svdquant": "NVFP4_SVDQUANT_DEFAULT_CFG",
    "smooth": "INT8_DEFAULT_CFG",
    "awq_lite": "INT4_AWQ_CFG",
    "awq_clip": "INT4_AWQ_CFG",
    "awq_full": "INT4_AWQ_CFG",
    "learned_rounding": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "compensate": {"layerwise": {"enable": True}},
    "learned_rounding": {"layerwise": {"enable": True}, "iterations": 2, "batch_size": 1, "checks": 1},
}


def test_every_algorithm_is_a_case() -> None:
    assert set(PRESETS) == set(ALGORITHMS) - {"max", "mse"}, (
        "max and mse choose scales alone, which go with the quantizers, and tests of their own interrupt these"
    )


@pytest.mark.parametrize("method", PRESETS)
def test_the_model_is_as_it_was(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reports = tiny_llama(num_hidden_layers=1), 0
    before, report = snapshot(model), Calibration.report

    def interrupted(calibration: Calibration, *args: Any, **details: Any) -> None:
        nonlocal reports
        report(calibration, *args, **details)
        reports += 1
        if reports == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Calibration, "report", interrupted)
    config = {**octavo.preset(PRESETS[method]), "algorithm": {"method": method, **OPTIONS.get(method, {})}}
    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(model, config, token_batches(), quiet=True)

    assert snapshot(model) == before
    assert octavo.history(model) == ()


def test_a_search_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    model, searched = tiny_llama(num_hidden_layers=1), 0
    before, search = snapshot(model), mse.best_amax

    def interrupted(*args: Any) -> Any:
        nonlocal searched
        searched += 1
        if searched == 3:
            raise KeyboardInterrupt
        return search(*args)

    monkeypatch.setattr(mse, "best_amax", interrupted)
    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(
            model, {**octavo.preset("INT8_DEFAULT_CFG"), "algorithm": "mse"}, token_batches(), quiet=True
        )

    assert searched == 3
    assert snapshot(model) == before
    assert octavo.history(model) == ()
