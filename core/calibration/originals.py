"""Originals: the values of parameters before something changed them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Originals:
    """The values of parameters before a run, or a finalization, changed them."""

    def __init__(self) -> None:
        self._values: dict[nn.Parameter, Tensor] = {}

    def keep(self, parameter: nn.Parameter) -> None:
        """Keep the values of a parameter, if they are not kept already."""
        if parameter not in self._values:
            self._values[parameter] = parameter.detach().clone()

    def __len__(self) -> int:
        return len(self._values)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every value back."""
        for parameter, values in self._values.items():
            parameter.copy_(values)
        self._values.clear()
