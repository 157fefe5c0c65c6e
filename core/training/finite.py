"""Where a loss that is not finite comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from octavo.core.errors import TrainingError
from octavo.core.graph.nested import tensors_in
from octavo.core.model.sharded import local_part, sharded_names


def watch_loss(model: nn.Module) -> RemovableHandle:
    """Stop training at the first loss, in training mode, that is NaN or infinite, and say where it began.

    The loss is `outputs["loss"]` of a model that returns its outputs by name; the model runs once more to find the
    module, but one that FSDP2 or ZeRO-3 divides does not. `remove()` of the result undoes it.

    Raises (inside of the model's call):
        TrainingError: the loss is not finite; the first parameter or module with such values is named.
    """
    return model.register_forward_hook(_Watch(), with_kwargs=True)


class _Watch:
    """The forward hook; the second run passes it by."""

    def __init__(self) -> None:
        self._is_running = False

    def __call__(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if self._is_running or not model.training or not hasattr(output, "get"):
            return
        loss = output.get("loss")
        if not isinstance(loss, Tensor) or math.isfinite(float(loss.detach())):
            return
        self._is_running = True
        try:
            origin = _origin(model, args, kwargs)
        finally:
            self._is_running = False
        raise TrainingError(
            f"the loss is {float(loss.detach())}; {origin}. Look at the learning rate, at gradient clipping and at "
            "this batch; a checkpoint from before is a place to start again"
        )


@torch.no_grad()
def _origin(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> str:
    for name, parameter in model.named_parameters():
        if not local_part(parameter).isfinite().all():
            return f"the first parameter with NaN or infinite values is {name!r}, an earlier step's doing"
    if sharded_names(model):  # another run needs all ranks, whose losses may be finite
        return "its weights, which ranks have parts of, are finite here, and the module was not looked for"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_Note(name, found)) for name, module in model.named_modules() if name
    ]
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the first module whose output is not finite is {found[0]!r}"
    return "every module's output is finite, so it is the loss itself"


class _Note:
    """Notes the name of a module whose output is not finite; inner modules come before those around them."""

    def __init__(self, name: str, found: list[str]) -> None:
        self._name, self._found = name, found

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(output)):
            self._found.append(self._name)
