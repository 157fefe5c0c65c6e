"""Originals: the values of parameters before something changed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from octavo.core.modules import tensor_quantizers


class Originals:
    """The values of parameters before a run, or a finalization, changed them."""

    def __init__(self) -> None:
        self._values: dict[nn.Parameter, Tensor] = {}

    def keep(self, parameter: nn.Parameter) -> None:
        """Keep the values of a parameter, if they are not kept already."""
        if parameter not in self._values:
            self._values[parameter] = parameter.detach().clone()

    def names(self, model: nn.Module) -> list[str]:
        """Return the names in `model` of the parameters whose values are kept."""
        return sorted(name for name, parameter in model.named_parameters() if parameter in self._values)

    def __len__(self) -> int:
        return len(self._values)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Give the model its original weights, and no factors, for the time of a context: to look at data again."""
        quantizers = [quantizer for _, quantizer in tensor_quantizers(model)]
        names = ("pre_quant_scale", "low_rank_down", "low_rank_up")
        factors = [(q, name, getattr(q, name)) for q in quantizers for name in names]
        self._exchange()
        try:
            for quantizer, name, _ in factors:
                setattr(quantizer, name, None)
            yield
        finally:
            for quantizer, name, factor in factors:
                setattr(quantizer, name, factor)
            self._exchange()

    def _exchange(self) -> None:
        for parameter, values in self._values.items():
            parameter.data, self._values[parameter] = values, parameter.data

    @torch.no_grad()
    def restore(self) -> None:
        """Put every value back."""
        for parameter, values in self._values.items():
            parameter.copy_(values)
        self._values.clear()
