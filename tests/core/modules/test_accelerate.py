"""accelerate's hooks put a forward into each instance: swapping under and over them, with the real library."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import (
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_submodules,
)
from torch import Tensor, nn

import octavo
from helpers.modules_layers import W8A8, TwoLayers, normal
from octavo.core.errors import PlanError, UnsupportedError
from octavo.core.modules import quantized_class, swap

X = normal(4, 32)


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    """The same model quantized without accelerate."""
    return octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)


@pytest.fixture(scope="module")
def expected(quantized: nn.Module) -> Tensor:
    return quantized(X).detach()


@pytest.fixture(scope="module")
def unquantized() -> Tensor:
    return TwoLayers()(X).detach()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def dispatched() -> nn.Module:
    devices = {"up": "cpu", "down": "cpu"}
    return dispatch_model(TwoLayers(), devices, main_device="cpu", force_hooks=True)


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(module).items()}
        for name, module in model.named_modules()
    }


def test_a_dispatched_model_quantizes_exactly_and_comes_back(expected: Tensor, unquantized: Tensor) -> None:
    model = dispatched()
    before = snapshot(model)
    assert "_old_forward" in vars(model.up)

    octavo.quantize(model, W8A8, [X], quiet=True)
    assert torch.equal(model(X), expected)

    octavo.unquantize(model)
    assert [type(model.up), type(model.down)] == [nn.Linear, nn.Linear]
    assert {**snapshot(model)[""], "_modules": None} == {**before[""], "_modules": None}
    assert {k: v for k, v in snapshot(model).items() if k} == {k: v for k, v in before.items() if k}
    assert torch.equal(model(X), unquantized)


def test_accelerates_hooks_run_around_the_quantized_forward(expected: Tensor) -> None:
    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    model, hook = TwoLayers(), Count()
    add_hook_to_module(model.down, hook)
    octavo.quantize(model, W8A8, [X], quiet=True)
    hook.calls = 0

    assert torch.equal(model(X), expected)
    assert hook.calls == 1
    second = Count()
    add_hook_to_module(model.down, second, append=True)
    assert isinstance(model.down._hf_hook, SequentialHook)
    assert torch.equal(model(X), expected)
    assert (hook.calls, second.calls) == (2, 1)


def test_dispatching_a_quantized_model(expected: Tensor, unquantized: Tensor) -> None:
    model = octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)
    dispatch_model(model, {"up": "cpu", "down": "cpu"}, main_device="cpu", force_hooks=True)

    assert torch.equal(model(X), expected)
    octavo.unquantize(model)
    assert torch.equal(model(X), unquantized)


def test_offloading_a_quantized_model(expected: Tensor, unquantized: Tensor) -> None:
    model = octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)
    cpu_offload(model, execution_device="cpu")
    assert model.up.weight.is_meta

    assert torch.equal(model(X), expected)
    octavo.unquantize(model)
    assert torch.equal(model(X), unquantized)


def test_offloading_buffers_of_a_quantized_model_is_refused() -> None:
    model = octavo.quantize(TwoLayers(), W8A8, [X], quiet=True)
    cpu_offload(model, execution_device="cpu", offload_buffers=True)

    with pytest.raises(
        UnsupportedError, match=r"calibrated state .* on the meta device.*offload_buffers=True"
    ):
        model(X)


def test_swapping_under_offloaded_weights(quantized: nn.Module, expected: Tensor) -> None:
    # quantize refuses this; a swap with known scales, as restoring does, works.
    model = TwoLayers()
    cpu_offload(model, execution_device="cpu")
    for name in ("up", "down"):
        layer, source = getattr(model, name), getattr(quantized, name)
        cls = quantized_class(type(layer))
        assert cls is not None
        swap(name, layer, cls, {n: copy.deepcopy(q) for n, q in source.quantizers().items()})

    assert torch.equal(model(X), expected)
    assert model.up.weight.is_meta


@pytest.mark.parametrize(("place", "count", "first"), [("cpu", 4, "up.weight"), ("disk", 2, "down.weight")])
def test_offloaded_weights_are_refused_by_name(place: str, count: int, first: str, tmp_path: Path) -> None:
    model = TwoLayers()
    if place == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        dispatch_model(model, {"up": "cpu", "down": "disk"}, main_device="cpu", offload_dir=tmp_path)
    message = (
        f"^{count} parameters are on the meta device, without values \\(first '{first}'\\); load the weights"
    )
    with pytest.raises(PlanError, match=message):
        octavo.quantize(model, W8A8, [X], quiet=True)

    assert [type(model.up), type(model.down)] == [nn.Linear, nn.Linear]


def test_a_copy_of_a_quantized_dispatched_model_runs_its_own_weights(expected: Tensor) -> None:
    model = octavo.quantize(dispatched(), W8A8, [X], quiet=True)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)

    with torch.no_grad():
        twin.up.weight.zero_()
    assert torch.equal(model(X), expected)
    assert not torch.equal(twin(X), expected)


def test_quantizing_after_hooks_were_removed(expected: Tensor) -> None:
    model = dispatched()
    remove_hook_from_submodules(model)
    octavo.quantize(model, W8A8, [X], quiet=True)

    assert torch.equal(model(X), expected)


def test_hooks_removed_while_quantized(unquantized: Tensor) -> None:
    model = octavo.quantize(dispatched(), W8A8, [X], quiet=True)
    remove_hook_from_submodules(model)
    octavo.unquantize(model)

    assert torch.equal(model(X), unquantized)
