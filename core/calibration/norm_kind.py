"""How a norm uses its weight: seen in what it computes, since names of classes do not tell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from octavo.core.errors import FOREIGN_FAILURES


@torch.no_grad()
def norm_kind(norm: nn.Module) -> Literal["weight", "one plus weight"] | None:
    """Return what `norm` multiplies its normalised input by; its bias, if any, is added afterwards.

    Returns:
        None when neither is so: with that factor at zero, its output is not zero for every input.
    """
    parameters = dict(norm.named_parameters(recurse=False))
    weight = parameters["weight"]
    zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    x = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
    if parameters.keys() <= {"weight", "bias"}:
        if _is_zero(norm, zeros, x):
            return "weight"
        if _is_zero(norm, {**zeros, "weight": -torch.ones_like(weight)}, x):
            return "one plus weight"
    return None


def _is_zero(norm: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> bool:
    try:
        output = functional_call(norm, parameters, (x,))
    except FOREIGN_FAILURES:  # it takes more than its input: nothing that is known to be a norm
        return False
    return isinstance(output, Tensor) and not output.any()
