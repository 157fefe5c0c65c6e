"""Reference implementations of the operators in plain torch, for every device without a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from octavo.core import formats
from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.ops.schema import LIBRARY


def stages(state: Sequence[Tensor], spec: str) -> Iterator[tuple[QuantSpec, Sequence[Tensor]]]:
    """Yield each spec of a chain with its part of the state."""
    position = 0
    for stage in parse_chain(spec):
        count = len(stage.state)
        yield stage, state[position : position + count]
        position += count


def _only(spec: str) -> QuantSpec:
    (single,) = parse_chain(spec)
    return single


def amax(x: Tensor, spec: str) -> Tensor:
    return formats.compute_amax(x, _only(spec))


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool = True) -> Tensor:
    for stage, tensors in stages(state, spec):
        x = formats.fake_quantize(x, tensors, stage)
    return x.contiguous()


def fake_quantize_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> Tensor:
    for stage, tensors in stages(state, spec):
        if stage.state:
            grad = grad * formats.in_range(x, tensors, stage)
        x = formats.fake_quantize(x, tensors, stage)
    return grad.clone(memory_format=torch.contiguous_format)


def fake_quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_state: Sequence[Tensor],
    x_spec: str,
    weight_state: Sequence[Tensor],
    weight_spec: str,
    x_range_mask: bool,
    weight_range_mask: bool,
) -> Tensor:
    return linear(fake_quantize(x, x_state, x_spec), fake_quantize(weight, weight_state, weight_spec), bias)


def quantize(x: Tensor, state: Sequence[Tensor], spec: str) -> list[Tensor]:
    return [part.contiguous() for part in formats.quantize(x, state, _only(spec)) if part is not None]


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return formats.dequantize(payload, scale, global_scale, _only(spec), shape, dtype).contiguous()


for _function in (amax, fake_quantize, fake_quantize_backward, fake_quantized_linear, quantize, dequantize):
    LIBRARY.impl(_function.__name__, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
