"""The one forward-loop protocol: a callable, a dataloader, or a list of tensors or dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.console import track
from octavo.core.errors import CalibrationError, ConfigError
from octavo.core.graph.evaluating import evaluating
from octavo.core.model.sharded import reshard

Batch = Tensor | Mapping[str, Any] | tuple[Any, ...] | list[Any]
ForwardLoop = Callable[[nn.Module], Any] | Iterable[Batch]


@torch.no_grad()
def run_forward_loop(model: nn.Module, forward_loop: ForwardLoop, quiet: bool) -> None:
    """Run calibration data through `model`, in eval mode and without gradients.

    Args:
        model: The model; its training flags are put back afterwards.
        forward_loop: A callable that takes the model and runs it, or an iterable of batches. A dict is passed
            as keyword arguments, a tuple or list as positional ones, a tensor as the only one; tensors are
            moved to the device of the model's first parameter that is not offloaded.
        quiet: Show no progress bar.

    Raises:
        CalibrationError: the model was not run once.
        ConfigError: a batch is of another type, or a single tensor stands in place of an iterable of batches.
    """
    if isinstance(forward_loop, Tensor):
        raise ConfigError(
            f"the forward loop is a Tensor of shape {tuple(forward_loop.shape)}; give a list of batches, [tensor] for "
            "a single one"
        )
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    with evaluating(model), model.register_forward_pre_hook(count):
        if callable(forward_loop):
            forward_loop(model)
        else:
            _run_batches(model, forward_loop, quiet)
    reshard(model)
    if calls == 0:
        raise CalibrationError(
            "the forward loop ran the model 0 times; it must call the model, or be an iterable with at least one "
            "batch (a generator yields its batches only once)"
        )


def _run_batches(model: nn.Module, batches: Iterable[Batch], quiet: bool) -> None:
    devices = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
    device = next(devices, torch.device("cpu"))
    for batch in track(batches, "calibrating", quiet):
        if isinstance(batch, Tensor):
            model(batch.to(device))
        elif isinstance(batch, Mapping):
            model(**{key: _moved(value, device) for key, value in batch.items()})
        elif isinstance(batch, (tuple, list)):
            model(*(_moved(value, device) for value in batch))
        else:
            raise ConfigError(
                f"a calibration batch must be a tensor, a dict of arguments, or a tuple of them; found "
                f"{type(batch).__name__}"
            )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
