"""Whether a factor on the channels of what a layer makes arrives, as it is, at what another one reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.graph.evaluating import evaluating

_TOLERANCE = 2.0**-7


@torch.no_grad()
def arrives(
    model: nn.Module,
    inputs: Mapping[str, Any],
    made: Mapping[nn.Module, Tensor],
    read: Mapping[nn.Module, Tensor],
) -> bool:
    """Return whether the model computes the same with outputs multiplied and inputs divided by factors.

    That is so if each factor passes unchanged from its maker to its readers, and nothing else reads what is made.

    Args:
        model: A model that rounds nothing.
        inputs: Keyword arguments for a forward pass.
        made: Factors [out] on the outputs of layers. Powers of two, so that nothing is lost to rounding.
        read: Factors [in] by which the inputs of other layers are divided.
    """
    expected = _tensors_of(model, inputs)
    with ExitStack() as stack:
        for maker, factor in made.items():
            stack.callback(maker.register_forward_hook(_multiply(factor)).remove)
        for reader, factor in read.items():
            stack.callback(reader.register_forward_pre_hook(_divide(factor)).remove)
        found = _tensors_of(model, inputs)
    return torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max()))


def _multiply(factor: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _args, output: (output * factor).to(output.dtype)


def _divide(factor: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, args: ((args[0] / factor).to(args[0].dtype), *args[1:])


def _tensors_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the first float tensor that the model returns."""
    with evaluating(model):
        output = model(**inputs)
    values = output if isinstance(output, (tuple, list)) else getattr(output, "values", lambda: [output])()
    return next(value.float() for value in values if isinstance(value, Tensor) and value.is_floating_point())
