"""Quantizing completes, or the model is exactly as it was: classes, attributes, tensors, attention, history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import calibrated_state
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration import attach as attach_module
from octavo.core.errors import CalibrationError, PlanError, UnsupportedError
from octavo.core.plugins import plugins

WITH_KV = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
BATCHES = token_batches(1)


class Stop(BaseException):
    """Like an interrupt or an exit, no `Exception`."""


def raising(error: BaseException) -> Any:
    def loop(model: nn.Module) -> None:
        model(BATCHES[0])
        raise error

    return loop


LOOPS = {
    "error after a batch": (raising(ValueError("broken")), ValueError),
    "interrupt": (raising(KeyboardInterrupt()), KeyboardInterrupt),
    "exit": (raising(SystemExit(1)), SystemExit),
    "unknown BaseException": (raising(Stop()), Stop),
    "no batch": ([], CalibrationError),
    "no data": (None, CalibrationError),
    "wrong data": ([{"unknown": BATCHES[0]}], ValueError),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_llama(attn_implementation=request.param)


@pytest.fixture(autouse=True)
def as_before(model: nn.Module) -> Iterator[None]:
    """Every test of this file leaves the model as it was, and one that can be quantized."""
    before = snapshot(model)
    yield
    assert snapshot(model) == before
    assert octavo.history(model) == ()


@pytest.mark.parametrize("kind", LOOPS)
def test_failing_calibration_undoes_everything(model: nn.Module, kind: str) -> None:
    loop, error = LOOPS[kind]

    with pytest.raises(error):
        octavo.quantize(model, WITH_KV, loop, quiet=True)


@pytest.mark.parametrize("reached", [0, 1, 5, 15])
def test_failing_to_attach_undoes_the_layers_attached_before(
    model: nn.Module, reached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full memory at the n-th quantizer that is made."""
    real, made = attach_module.swap, []

    def swap(name: str, *args: Any) -> None:
        if len(made) == reached:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        made.append(name)
        real(name, *args)

    monkeypatch.setattr(attach_module, "swap", swap)
    with pytest.raises(torch.OutOfMemoryError, match="2 GiB"):
        octavo.quantize(model, WITH_KV, BATCHES, quiet=True)
    assert len(made) == reached


@pytest.mark.parametrize("failing", ["prepare_model", "tiny_inputs"])
def test_a_plugin_that_fails_undoes_everything(
    model: nn.Module, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(type(plugins()), failing)

    def fail(self: Any, given: nn.Module) -> Any:
        answer = real(self, given)
        if any(True for _ in octavo_layers(given)):
            raise RuntimeError("a broken plugin")
        return answer

    monkeypatch.setattr(type(plugins()), failing, fail)
    with pytest.raises(RuntimeError, match="a broken plugin"):
        octavo.quantize(model, WITH_KV, BATCHES, quiet=True)


def octavo_layers(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in model.modules() if isinstance(layer, octavo.QuantModule))


def test_a_layer_with_a_forward_of_its_own_is_refused_by_name(model: nn.Module) -> None:
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    layer.forward = lambda x: nn.Linear.forward(layer, x)  # type: ignore[assignment, arg-type]
    try:
        message = r"^model.layers.1.mlp.down_proj: this Linear instance has a forward of its own"
        with pytest.raises(UnsupportedError, match=message):
            octavo.quantize(model, WITH_KV, BATCHES, quiet=True)
        assert not any(octavo_layers(model))
    finally:
        del layer.forward


def test_a_plan_with_errors_changes_nothing(model: nn.Module) -> None:
    with pytest.raises(
        PlanError, match=r"self_attn.q_proj.weight_quantizer: last dim 128 is not divisible by .* 48"
    ):
        octavo.quantize(model, octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 48), quiet=True)


def test_after_a_failure_the_same_model_can_be_quantized(model: nn.Module) -> None:
    fresh = tiny_llama(attn_implementation=model.config._attn_implementation)  # type: ignore[union-attr]
    expected = calibrated_state(octavo.quantize(fresh, WITH_KV, BATCHES, quiet=True))
    with pytest.raises(ValueError, match="broken"):
        octavo.quantize(model, WITH_KV, raising(ValueError("broken")), quiet=True)

    octavo.quantize(model, WITH_KV, BATCHES, quiet=True)

    assert calibrated_state(model) == expected
    octavo.unquantize(model)
