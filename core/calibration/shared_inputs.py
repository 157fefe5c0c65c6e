"""Inputs of layers rounded once where several layers read the same tensor, with gradients: for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.modules import QuantModule, quantized_layers
from octavo.core.modules.linear import QuantLinear
from octavo.core.quantizers import TensorQuantizer


@contextmanager
def shared_inputs(module: nn.Module) -> Iterator[None]:
    """Round what linear layers read before they read it, for the time of a context; the numbers are the same.

    The operator of a quantized linear layer rounds its input in forward and once more in backward, for every layer by
    itself. Here, layers that read one tensor with equal scales share what was rounded, and it is kept for backward.
    """
    with ExitStack() as contexts:
        inputs: list[_Input] = []
        for _, layer in quantized_layers(module):
            quantizer = _input_quantizer(layer)
            if quantizer is None:
                continue
            shared = next((known for known in inputs if known.equals(quantizer)), None)
            if shared is None:
                shared = _Input(quantizer)
                inputs.append(shared)
            contexts.enter_context(shared.rounding_for(layer, quantizer))
        yield


def _input_quantizer(layer: QuantModule) -> TensorQuantizer | None:
    found = layer.quantizers().get("input_quantizer") if isinstance(layer, QuantLinear) else None
    return found if isinstance(found, TensorQuantizer) and found.is_active else None


class _Input:
    """What was rounded last, for all layers whose input quantizers do the same."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        self._key, self._state = quantizer.active_key, quantizer.active_state()
        self._scale, self._mask = quantizer.pre_quant_scale, quantizer.range_mask
        self._read: tuple[Tensor, int] | None = None
        self._rounded: Tensor | None = None

    def equals(self, quantizer: TensorQuantizer) -> bool:
        mine, others = (self._scale, *self._state), (quantizer.pre_quant_scale, *quantizer.active_state())
        return (self._key, self._mask) == (quantizer.active_key, quantizer.range_mask) and all(
            a is b or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(mine, others, strict=True)
        )

    @contextmanager
    def rounding_for(self, layer: nn.Module, quantizer: TensorQuantizer) -> Iterator[None]:
        """Take the place of a layer's quantizer."""
        scale = quantizer.pre_quant_scale

        def read(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0] if scale is None else args[0] * scale.to(args[0].dtype)
            return (x if quantizer.collector is not None else self._round(args[0]), *args[1:])

        try:
            quantizer.enabled, quantizer.pre_quant_scale = False, None
            with layer.register_forward_pre_hook(read):
                yield
        finally:
            quantizer.enabled, quantizer.pre_quant_scale = True, scale
            self._read = self._rounded = None

    def _round(self, x: Tensor) -> Tensor:
        if (
            self._read is None
            or self._read[0] is not x
            or self._read[1] != x._version
            or self._rounded is None
        ):
            scaled = x if self._scale is None else x * self._scale.to(x.dtype)
            self._read = x, x._version
            self._rounded = ops.fake_quantize(scaled, self._state, self._key, self._mask)
        return self._rounded
