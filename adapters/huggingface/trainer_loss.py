"""Another loss in the stock `Trainer`, without a subclass: a hook puts it into what the model returns in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from octavo.core.errors import ConfigError


class TrainingLoss(Protocol):
    """What training minimizes in place of the model's own loss."""

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> Tensor:
        """Return the loss, a scalar with a gradient.

        Args:
            model: The model that just ran in training mode. Running it again here, as its own teacher, does not call
                the loss again.
            inputs: The keyword arguments that it ran with. With `num_items_in_batch` among them, the Trainer expects
                a sum over tokens divided by that number, which counts those of all batches that it accumulates;
                otherwise a mean over this batch.
            outputs: What it returned; `outputs["loss"]` is its own loss where `inputs` has labels.
        """


def replace_loss(model: nn.Module, loss: TrainingLoss) -> RemovableHandle:
    """Make `outputs["loss"]` of a model what `loss` returns, in training mode; evaluation keeps the model's own.

    The Trainer takes it from there, with accumulation, mixed precision and clipping as ever. `remove()` of the result
    undoes it.
    """
    return model.register_forward_hook(_LossHook(loss), with_kwargs=True)


class _LossHook:
    """The forward hook; a forward pass inside of the loss passes it by."""

    def __init__(self, loss: TrainingLoss) -> None:
        self._loss = loss
        self._is_running = False

    def __call__(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        if self._is_running or not model.training:
            return output
        if not hasattr(output, "keys"):
            raise ConfigError(
                f"a training loss needs a model that returns its outputs by name, found {type(output).__name__}; "
                "call it with return_dict=True"
            )
        self._is_running = True
        try:
            output["loss"] = self._loss(model, kwargs, output)
        finally:
            self._is_running = False
        return output
