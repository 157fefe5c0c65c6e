"""The operators that return values: maxima, fake quantization, its backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.ops.stages import stages
from octavo.kernels.triton.launch import default_geometry, rotates, start
from octavo.kernels.triton.support import declined, takes, takes_state


def amax(x: Tensor, spec: str) -> Any:
    """Compute `octavo::amax`."""
    (only,) = parse_chain(spec)
    return NotImplemented if declined(spec) or not takes(x) else block_maxima(x, only)


def block_maxima(x: Tensor, spec: QuantSpec) -> Any:
    """Return `formats.compute_amax(x, spec)`, or NotImplemented; `support` takes `x` and `spec`."""
    from octavo.kernels.triton.device.amax import amax_kernel

    cut = default_geometry(spec, x.shape, whole=True)
    if cut is None:
        return NotImplemented
    bits = x.new_zeros(spec.granularity.scale_shape(x.shape), dtype=torch.int32)
    start(amax_kernel, [bits, x.contiguous()], spec, x.shape, whole=True, with_format=False)
    return bits.view(torch.float32)


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: str, range_mask: bool) -> Any:
    """Compute `octavo::fake_quantize`."""
    if not parse_chain(spec) or declined(spec) or not takes(x):
        return NotImplemented
    for stage, tensors in stages(x, state, spec):
        x = fake_quantized(x, tensors, stage)
        if x is NotImplemented:
            return NotImplemented
    return x


def rotated_fake_quantize(x: Tensor, block: int, state: Sequence[Tensor], spec: str, range_mask: bool) -> Any:
    """Compute `octavo::rotated_fake_quantize`."""
    if not parse_chain(spec) or declined(spec) or not takes(x):
        return NotImplemented
    (first, tensors), *others = stages(x, state, spec)
    x = fake_quantized(x, tensors, first, rotation=block)
    for stage, tensors in others:
        if x is not NotImplemented:
            x = fake_quantized(x, tensors, stage)
    return x


def fake_quantized(x: Tensor, state: Sequence[Tensor], spec: QuantSpec, rotation: int = 1) -> Any:
    """Return `formats.fake_quantize(x, state, spec)`, or NotImplemented; `support` takes `x` and `spec`.

    `rotation` is the length of the blocks of `x` that are transformed first (`formats.hadamard`), 1 for none.
    """
    from octavo.kernels.triton.device.fake_quantize import fake_quantize_kernel

    x = x.contiguous()
    if rotation > 1 and not _rotates(x, spec, rotation):
        return NotImplemented
    maxima = known_maxima(x, state, spec)
    if maxima is NotImplemented:
        return NotImplemented
    result = torch.empty_like(x)
    tensors = [result, x, *maxima[:2]]
    start(fake_quantize_kernel, tensors, maxima[2], x.shape, whole=spec.dynamic, rotation=rotation)
    return result


def fake_quantize_backward(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: str) -> Any:
    """Compute `octavo::fake_quantize_backward`."""
    if not parse_chain(spec) or declined(spec) or not (takes(x) and takes(grad)):
        return NotImplemented
    chain = stages(x, state, spec)
    if grad.shape != x.shape or not any(stage.state for stage, _ in chain):
        return NotImplemented
    last = max(index for index, (stage, _) in enumerate(chain) if stage.state)
    for index, (stage, tensors) in enumerate(chain[: last + 1]):
        if stage.state:
            grad = _masked(grad, x, tensors, stage)
        if index < last and grad is not NotImplemented:
            x = fake_quantized(x, tensors, stage)
        if grad is NotImplemented or x is NotImplemented:
            return NotImplemented
    return grad


def _masked(grad: Tensor, x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Any:
    from octavo.kernels.triton.device.fake_quantize import mask_gradient_kernel

    x, grad = x.contiguous(), grad.contiguous()
    maxima = known_maxima(x, state, spec)
    if maxima is NotImplemented:
        return NotImplemented
    result = torch.empty_like(grad)
    start(mask_gradient_kernel, [result, grad, x, *maxima[:2]], maxima[2], x.shape, whole=spec.dynamic)
    return result


def _rotates(x: Tensor, spec: QuantSpec, length: int) -> bool:
    """Return whether one program holds all that it needs to transform `x` and to round it."""
    cut = default_geometry(spec, x.shape, whole=spec.dynamic)
    return cut is not None and rotates(cut, length) and not (spec.dynamic and not cut.owns_scales)


def known_maxima(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Any:
    """Return `amax`, `global_amax` and the format with which kernels round `x`, or NotImplemented.

    Where a format is dynamic and no program holds all that shares a scale, maxima are found first, and the format
    is then that of calibrated ones; else they stay None, as does a second level that there is not.
    """
    cut = default_geometry(spec, x.shape, whole=spec.dynamic)
    if cut is None or not takes_state(x, state, spec):
        return NotImplemented
    named = {name: tensor.contiguous() for name, tensor in zip(spec.state, state, strict=True)}
    global_amax = named.get("global_amax")
    if spec.dynamic and not cut.owns_scales:
        return block_maxima(x, spec), global_amax, replace(spec, dynamic=False)
    return named.get("amax"), global_amax, spec
