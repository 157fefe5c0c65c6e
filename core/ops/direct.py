"""Operators called past torch's dispatcher where it would do nothing: with one token it costs more than the product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from octavo.core.ops.kernels import run

_PLAIN = (Tensor, nn.Parameter)


def call(operator: str, tensors: tuple[Tensor | None, ...], args: tuple[Any, ...]) -> Any:
    """Return what an operator computes.

    Args:
        operator: Its name.
        tensors: Those of its arguments that may need a gradient, or be of a class of their own.
        args: All of its arguments.
    """
    if _is_unseen(tensors):
        return run(operator, *args)
    return getattr(torch.ops.octavo, operator).default(*args)


def _is_unseen(tensors: tuple[Tensor | None, ...]) -> bool:
    """Return whether neither autograd, nor a compiler or tracer, nor a mode or a tensor's class looks at a call."""
    if (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    if torch._C._get_tracing_state() is not None:
        return False
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors):
        return False
    return all(part is None or type(part) in _PLAIN for part in tensors)
