"""Eager attention whose softmax output is quantized.

All of transformers' eager attention functions take an additive mask and end in one softmax, a dropout and a product
with the values. Theirs run, so that soft caps, sinks and grouped heads are as the model has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from octavo.core.errors import UnsupportedError

# None: a model that chooses none runs its eager function.
_KNOWN_MASKS = ("eager", "sdpa", None)
_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)


class QuantizedSoftmax(TorchFunctionMode):
    """A context in which this thread's softmax results go through `quantize`.

    Args:
        quantize: Called with each result, of any shape and dtype; returns the same.
    """

    def __init__(self, quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._quantize = quantize

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and quantize what a softmax returns."""
        result = func(*args, **(kwargs or {}))
        return self._quantize(result) if func in _SOFTMAX else result


def check_can_be_eager(name: str, implementation: str | None, eager: Callable[..., Any] | None) -> None:
    """Refuse a layer whose eager attention cannot stand in for the implementation that its model asks for.

    Raises:
        UnsupportedError: the implementation has masks of its own, or the layer has no eager function.
    """
    if implementation not in _KNOWN_MASKS:
        raise UnsupportedError(
            f"{name}: the softmax output (p_bmm_quantizer) exists in eager attention only, and the masks of the "
            f"attention implementation {implementation!r} cannot be read; load the model with 'eager' or 'sdpa', or "
            "leave p_bmm_quantizer off"
        )
    if eager is None:
        raise UnsupportedError(
            f"{name}: the softmax output (p_bmm_quantizer) exists in eager attention only, and this layer has no "
            "eager attention function; leave p_bmm_quantizer off"
        )


def additive_mask(
    layer: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None
) -> Tensor | None:
    """Return the mask that eager attention adds to its scores, for a mask as SDPA takes it.

    Args:
        layer: The attention layer; `is_causal` of it holds where the argument is None, and True where it has none.
        query: [batch, heads, tokens, head_dim].
        key: [batch, key heads, keys, head_dim].
        mask: Additive, boolean with True for what takes part, or None: all, or in causal layers all up to the token.
        is_causal: What the layer handed to attention.
    """
    if mask is None:
        causal = is_causal if is_causal is not None else getattr(layer, "is_causal", True)
        tokens, keys = query.shape[2], key.shape[2]
        if tokens == 1 or not causal:
            return None
        mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril()
    if mask.dtype != torch.bool:
        return mask
    lowest = torch.finfo(query.dtype).min
    return torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, lowest)
