"""A quantized class that something hides is found by a tiny forward pass, before any calibration."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import octavo
from helpers.calibration_models import calibrated_state, rows, two_layers
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.attach import attach, check_reached, detach
from octavo.core.errors import CalibrationError, UnsupportedError
from octavo.core.graph.groups import probe_or_note
from octavo.core.plugins import Plugins

HIDDEN = "model.layers.0.mlp.up_proj"
MESSAGE = (
    f"^2 quantizers of layers that ran were never reached: {HIDDEN}.input_quantizer, {HIDDEN}.weight_quantizer. "
    "Something replaced these layers' forward; quantize before whatever did, or "
    "exclude them$"
)


def hide(model: nn.Module, name: str = HIDDEN) -> None:
    """What tools do that keep a layer's old forward and put it back into the instance."""
    layer = model.get_submodule(name)
    layer.forward = MethodType(nn.Linear.forward, layer)  # type: ignore[method-assign, assignment]


def attached(model: nn.Module) -> nn.Module:
    attach(model, octavo.plan(model, octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")).layers)
    return model


def test_a_forward_replaced_after_attaching_is_found_by_name() -> None:
    model = attached(tiny_llama(num_hidden_layers=1))
    check_reached(model)
    hide(model)

    with pytest.raises(CalibrationError, match=MESSAGE):
        check_reached(model)


def test_attention_that_no_longer_goes_through_the_interface_is_found() -> None:
    model = attached(tiny_llama(num_hidden_layers=1))
    attention = model.get_submodule("model.layers.0.self_attn")
    attention.config = model.config  # not the one that routes to quantizers

    message = "^2 quantizers .* model.layers.0.self_attn.k_bmm_quantizer, .*v_bmm_quantizer"
    with pytest.raises(CalibrationError, match=message):
        check_reached(model)


def test_the_check_leaves_flags_and_quantizers_as_they_were() -> None:
    model = attached(tiny_llama(num_hidden_layers=1)).train()
    before = snapshot(model)

    check_reached(model)

    assert snapshot(model) == before


def test_a_layer_that_does_not_run_is_no_reason_to_refuse() -> None:
    """A branch that the tiny pass does not take shows nothing; calibration will look at it."""
    model = attached(tiny_llama(num_hidden_layers=2))
    hide(model, "model.layers.1.mlp.up_proj")
    model.model.layers[1].forward = lambda hidden, *args, **kwargs: hidden  # type: ignore[union-attr, index, operator]

    check_reached(model)


def test_models_that_no_adapter_can_run_are_not_checked() -> None:
    model = attached(two_layers())
    hide(model, "0")

    check_reached(model)


def test_a_quantizer_that_is_off_need_not_be_reached() -> None:
    model = attached(tiny_llama(num_hidden_layers=1))
    hide(model)
    for name in ("input_quantizer", "weight_quantizer"):
        model.get_submodule(f"{HIDDEN}.{name}").enabled = False

    check_reached(model)


def test_a_tiny_forward_pass_that_fails_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = attached(tiny_llama(num_hidden_layers=1))
    fail(model, TypeError("no batch of one token"))

    check_reached(model)
    assert capsys.readouterr().err == (
        "octavo: warning: the dataflow probe could not run (TypeError: no batch of one token), so whether every "
        "quantizer is reached was not checked\n"
    )
    check_reached(model, quiet=True)
    assert capsys.readouterr().err == ""


def test_memory_that_runs_out_is_no_note() -> None:
    model = attached(tiny_llama(num_hidden_layers=1))
    fail(model, torch.OutOfMemoryError("CUDA out of memory"))

    with pytest.raises(torch.OutOfMemoryError):
        check_reached(model)
    with pytest.raises(torch.OutOfMemoryError):
        probe_or_note(model, {}, {})


def fail(model: nn.Module, error: Exception) -> None:
    def hook(*_: Any) -> None:
        raise error

    model.register_forward_pre_hook(hook)


def test_hooks_of_accelerate_run_the_quantized_class_in_either_order() -> None:
    expected = octavo.quantize(
        tiny_llama(num_hidden_layers=1), "FP8_DEFAULT_CFG", token_batches(1), quiet=True
    )
    for hook_first in (True, False):
        model = tiny_llama(num_hidden_layers=1)
        if not hook_first:
            attached(model)
        for name, layer in list(model.named_modules()):
            if name.endswith("_proj"):
                add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
        if not hook_first:
            check_reached(model)
            detach(model)
        octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

        assert calibrated_state(model) == calibrated_state(expected)
        octavo.unquantize(model)
        remove_hook_from_module(model, recurse=True)
        assert {type(layer) for name, layer in model.named_modules() if name.endswith("_proj")} == {nn.Linear}


def test_quantize_undoes_everything_when_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another tool's hook replaces a forward while the model is prepared."""
    real: Callable[[Any, nn.Module], None] = Plugins.prepare_model

    def prepare_and_hide(self: Any, model: nn.Module) -> None:
        real(self, model)
        hide(model)

    model = tiny_llama(num_hidden_layers=1)
    classes = [type(module) for module in model.modules()]
    monkeypatch.setattr(Plugins, "prepare_model", prepare_and_hide)

    with pytest.raises(CalibrationError, match=r"^2 quantizers of layers that ran were never reached"):
        octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

    assert [type(module) for module in model.modules()] == classes


def test_unquantize_takes_off_all_quantizers_or_none() -> None:
    model = octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True)
    hide(model, "1")

    try:
        octavo.unquantize(model)
    except UnsupportedError:
        assert len(octavo.history(model)) == 1
        assert all(isinstance(layer, octavo.QuantModule) for layer in model)
    else:
        assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    with torch.no_grad():
        assert model(rows()).isfinite().all()
