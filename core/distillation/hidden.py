"""Outputs of modules inside a model, caught while it runs, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.distillation.config import HiddenLoss
from octavo.core.errors import ConfigError, ShapeError, nearest


class Outputs:
    """The newest output of some modules of a model.

    Attributes:
        last: {module's name: its output; the first tensor where it returns several}, of the newest pass.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], whose: str) -> None:
        modules = dict(model.named_modules())
        self.last: dict[str, Tensor] = {}
        self._handles = []
        for name in dict.fromkeys(names):
            if name not in modules:
                raise ConfigError(
                    f"distillation: the {whose} has no module {name!r}.{nearest(name, list(modules))}"
                )
            self._handles.append(modules[name].register_forward_hook(self._catcher(name)))

    def _catcher(self, name: str) -> Any:
        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            self.last[name] = output if isinstance(output, Tensor) else next(iter(output))

        return catch

    def forget(self) -> None:
        """Let go of what was caught."""
        self.last.clear()

    def close(self) -> None:
        """Take the hooks off."""
        self.forget()
        for handle in self._handles:
            handle.remove()


def hidden_loss(loss: HiddenLoss, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Return the mean over the pairs of layers of one `HiddenLoss`, fp32 [].

    Raises:
        ShapeError: two outputs differ in shape.
    """
    parts = []
    for ours, theirs in loss.layers.items():
        found, wanted = student[ours], teacher[theirs]
        if found.shape != wanted.shape:
            raise ShapeError(
                f"distillation: {ours} of the student returns {tuple(found.shape)}, {theirs} of the teacher "
                f"{tuple(wanted.shape)}; give layers of one width"
            )
        parts.append(_distance(loss.kind, found.float(), wanted.detach().float()))
    return torch.stack(parts).mean()


def _distance(kind: str, found: Tensor, wanted: Tensor) -> Tensor:
    if kind == "cosine":
        return (1 - torch.cosine_similarity(found, wanted, dim=-1)).mean()
    squares = (found - wanted).square().mean()
    return (
        squares
        if kind == "mse"
        else squares / wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    )
