"""The operators that work on each element with the scale of its block, by the compiled code.

Bit for bit the reference, except for the bits of a NaN. What has no elements, no dims or float64 values is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import NotImplementedType

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.ops.stages import stages
from octavo.kernels.cpu.compiled import DTYPES, run
from octavo.kernels.cpu.layout import Layout, layout_of
from octavo.kernels.cpu.memory import empty
from octavo.kernels.cpu.scaling import Scaling, scaling_of


def amax(x: Tensor, spec: str) -> Tensor | NotImplementedType:
    """Compute `octavo::amax`."""
    (only,) = parse_chain(spec)
    layout = _layout(x, only)
    return NotImplemented if layout is None else _amax(x.contiguous(), only, layout)


def fake_quantize(
    x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool = True
) -> Tensor | NotImplementedType:
    """Compute `octavo::fake_quantize`."""
    chain = chain_of(x, state, spec)
    if chain is None:
        return NotImplemented
    result = x.contiguous()
    for stage, tensors, layout in chain:
        result = _fake_quantize(result, tensors, stage, layout)
    return result


def fake_quantize_backward(
    grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str
) -> Tensor | NotImplementedType:
    """Compute `octavo::fake_quantize_backward`."""
    chain = chain_of(x, state, spec)
    if chain is None or grad.dtype != x.dtype or grad.shape != x.shape:
        return NotImplemented
    masks = [position for position, (stage, _, _) in enumerate(chain) if stage.state]
    if not masks:
        return NotImplemented
    x, result = x.contiguous(), grad.contiguous()
    for position, (stage, tensors, layout) in enumerate(chain[: masks[-1] + 1]):
        if position in masks:
            result = _masked(result, x, tensors, stage, layout)
        if position < masks[-1]:
            x = _fake_quantize(x, tensors, stage, layout)
    return result


def chain_of(
    x: Tensor, state: Sequence[Tensor], spec: str
) -> list[tuple[QuantSpec, Sequence[Tensor], Layout]] | None:
    """Return each spec with its state and layout; None for what is left to the reference.

    Raises:
        ShapeError: as `core.ops.stages.stages`.
    """
    found = []
    for stage, tensors in stages(x, state, spec):
        layout = _layout(x, stage)
        if layout is None:
            return None
        found.append((stage, tensors, layout))
    return found or None


def _layout(x: Tensor, spec: QuantSpec) -> Layout | None:
    if x.dtype not in DTYPES or x.numel() == 0 or x.dim() == 0:
        return None
    return layout_of(spec.granularity, tuple(x.shape))


def _amax(x: Tensor, spec: QuantSpec, layout: Layout) -> Tensor:
    result = torch.zeros(spec.granularity.scale_shape(x.shape), dtype=torch.float32, device="cpu")
    run("amax", layout.compiled, DTYPES[x.dtype], x.data_ptr(), result.data_ptr())
    return result


def _fake_quantize(x: Tensor, tensors: Sequence[Tensor], spec: QuantSpec, layout: Layout) -> Tensor:
    result = empty(x.shape, x.dtype)
    scaling = scaling_for(x, tensors, spec, layout)
    pointers = x.data_ptr(), result.data_ptr()
    run("fake_quantize", layout.compiled, scaling.compiled, DTYPES[x.dtype], *pointers)
    return result


def _masked(grad: Tensor, x: Tensor, tensors: Sequence[Tensor], spec: QuantSpec, layout: Layout) -> Tensor:
    result = empty(grad.shape, grad.dtype)
    scaling = scaling_for(x, tensors, spec, layout)
    pointers = x.data_ptr(), grad.data_ptr(), result.data_ptr()
    run("mask_gradient", layout.compiled, scaling.compiled, DTYPES[x.dtype], *pointers)
    return result


def scaling_for(
    x: Tensor,
    tensors: Sequence[Tensor],
    spec: QuantSpec,
    layout: Layout,
    stored_shape: Sequence[int] | None = None,
) -> Scaling:
    """Return the scales of a contiguous tensor; those of `stored_shape` are stored."""
    named = dict(zip(spec.state, tensors, strict=True))
    largest = named.get("amax")
    if spec.dynamic and not layout.fits_cache:
        largest = _amax(x, spec, layout)
    return scaling_of(spec, layout, largest, named.get("global_amax"), stored_shape)
