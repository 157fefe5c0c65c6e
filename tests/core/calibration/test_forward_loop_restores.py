"""A calibration run leaves training flags, grad mode and hooks as they were, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.calibration_models import calibrated_state, rows, two_layers
from helpers.calibration_snapshot import snapshot
from octavo import quantize
from octavo.core.calibration.forward_loop import run_forward_loop


def fail(model: nn.Module) -> None:
    model(rows())
    raise KeyError("broken data")


def interrupt(_: nn.Module) -> None:
    raise KeyboardInterrupt


LOOPS: dict[str, tuple[Any, type[BaseException] | None]] = {
    "batches": ([rows()], None),
    "failing": (fail, KeyError),
    "interrupted": (interrupt, KeyboardInterrupt),
    "unusable": ([rows(), "text"], ValueError),
}


def mixed_model() -> nn.Sequential:
    """In training, but for one layer that the user has frozen in eval mode."""
    model = nn.Sequential(
        nn.Linear(32, 32), nn.Dropout(0.5), nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.1))
    )
    model.train()
    model[2].eval()
    return model


def run(model: nn.Module, loop: Any, error: type[BaseException] | None) -> None:
    if error is None:
        run_forward_loop(model, loop, quiet=True)
        return
    with pytest.raises(error):
        run_forward_loop(model, loop, quiet=True)


@pytest.mark.parametrize("kind", LOOPS)
def test_flags_hooks_and_tensors_are_as_before(kind: str) -> None:
    model = mixed_model()
    before = snapshot(model)

    run(model, *LOOPS[kind])

    assert snapshot(model) == before


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_as_before(kind: str, enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        run(mixed_model(), *LOOPS[kind])

        assert torch.is_grad_enabled() is enabled


def test_the_model_runs_in_eval_mode_and_without_gradients() -> None:
    seen: list[tuple[bool, ...]] = []

    def look(model: nn.Module) -> None:
        output = model(rows())
        seen.append((*(m.training for m in model.modules()), torch.is_grad_enabled(), output.requires_grad))

    run_forward_loop(mixed_model(), look, quiet=True)

    assert seen == [(False,) * 8]


def test_a_loop_that_calls_train_leaves_no_trace() -> None:
    model = mixed_model()
    before = snapshot(model)

    def train(model: nn.Module) -> None:
        model(rows())
        model.train()

    run_forward_loop(model, train, quiet=True)

    assert snapshot(model) == before


def inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        model(rows())


def no_grad(model: nn.Module) -> None:
    with torch.no_grad():
        model(rows())


def with_grad(model: nn.Module) -> None:
    with torch.enable_grad():
        model(rows())


@pytest.mark.parametrize(
    "loop",
    [no_grad, with_grad, inference_mode],
)
def test_loops_may_choose_their_grad_mode(loop: Callable[[nn.Module], None]) -> None:
    expected = calibrated_state(quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True))

    assert calibrated_state(quantize(two_layers(), "FP8_DEFAULT_CFG", loop, quiet=True)) == expected


def test_a_model_can_be_quantized_within_inference_mode() -> None:
    with torch.inference_mode():
        model = quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True)

    expected = quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True)
    assert calibrated_state(model) == calibrated_state(expected)
