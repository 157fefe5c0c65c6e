"""Everything of a model that an undone or failed run must leave as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return classes, attributes, hooks, tensors (identity and bytes) and config of a model, to compare."""
    taken: dict[str, Any] = {
        name: (type(module), {key: _frozen(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }
    taken["state_dict"] = state_bytes(model)
    if hasattr(model, "config"):
        taken["config"] = dict(vars(model.config))
    return taken


def state_bytes(model: nn.Module) -> list[tuple[str, torch.dtype, bytes]]:
    """Return names, dtypes and bytes of the state dict, in order."""
    return [(name, tensor.dtype, raw_bytes(tensor)) for name, tensor in model.state_dict().items()]


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same_bits(found: Tensor, expected: Tensor) -> bool:
    same_kind = found.dtype == expected.dtype and found.shape == expected.shape
    return same_kind and raw_bytes(found) == raw_bytes(expected)


def _frozen(value: Any) -> Any:
    """Objects count by identity, plain values by value, and dicts (parameters, hooks, …) by their items."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return id(value)
