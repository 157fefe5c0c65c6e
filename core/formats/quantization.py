"""Quantize, dequantize and fake-quantize in plain torch: the reference that every kernel must match bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.errors import ShapeError
from octavo.core.formats.granularity import PerTensor, keepdim_shape, unblocked
from octavo.core.formats.packing import pack, packed_length, unpack
from octavo.core.formats.pieces import pieces
from octavo.core.formats.rounding import decode, encode, round_to_grid
from octavo.core.formats.scales import Scales, beside, scales_from_amax, step_from_stored
from octavo.core.formats.spec import QuantSpec
from octavo.core.formats.tensor_like import TensorLike

RANGE_SLACK = 1 + 2.0**-20
# Bits of numbers without a sign are ordered as the numbers, NaN last; integers are compared twice as fast.
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Quantized(NamedTuple):
    """A quantized tensor in plain tensors.

    Attributes:
        payload: uint8 codes, packed along the last dim: [..., ⌈n·bits/8⌉].
        scale: Stored first-level scales, shape `granularity.scale_shape` (see `Scales.stored`).
        global_scale: fp32 [] second-level scale, or None.
    """

    payload: Tensor
    scale: Tensor
    global_scale: Tensor | None


def compute_amax(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return the largest magnitude of each block, fp32, shape `granularity.scale_shape(x.shape)`.

    NaN anywhere in a block makes its result NaN. An empty tensor has maxima of 0.
    """
    shape = spec.granularity.scale_shape(x.shape)
    if x.numel() == 0:
        return x.new_zeros(shape, dtype=torch.float32)
    if isinstance(spec.granularity, PerTensor):
        low, high = torch.aminmax(x)  # one pass and no temporary of the size of x
        return torch.maximum(low.abs(), high.abs()).float()
    view = spec.granularity.blocked(x)
    dims = spec.granularity.reduced_dims(x.dim())
    amax = view.new_empty(keepdim_shape(spec.granularity, x.shape), dtype=torch.float32)
    for part, largest in pieces([view, amax], whole=dims):
        largest.copy_(_largest(part.abs(), dims) if dims else part.abs())
    return amax.reshape(shape)


def _largest(magnitudes: Tensor, dims: tuple[int, ...]) -> Tensor:
    bits = _BITS.get(magnitudes.dtype, magnitudes.dtype)
    return magnitudes.view(bits).amax(dims, keepdim=True).view(magnitudes.dtype)


def fake_quantize(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Tensor:
    """Round `x` to the values that its codes and scales stand for.

    Args:
        x: Any float dtype, any shape.
        state: Calibrated tensors, fp32, in the order of `spec.state`.
        spec: The format.

    Returns:
        Tensor of the shape and dtype of `x`, equal bit for bit to `dequantize(*quantize(x, state, spec), …)`.
        NaN stays NaN here, and has no code in most formats: weights with NaN are refused before this. There is no
        gradient; `core.ops` has it.
    """
    x = x.detach()
    scales = scales_from_amax(*_amax(x, state, spec), spec)
    view = spec.granularity.blocked(x)
    values = view.new_empty(view.shape)
    for grid, step, result in _grids(view, values, scales, spec, x.shape):
        torch.mul(grid, step, out=result)
    return unblocked(values, spec.granularity, x.shape)


def quantize(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Quantized:
    """Return the packed codes and scales of `x`; arguments as in `fake_quantize`.

    Raises:
        ShapeError: `x` is a scalar.
    """
    scales = scales_from_amax(*_amax(x, state, spec), spec)
    if x.dim() == 0:
        raise ShapeError("a scalar cannot be packed: codes are packed along the last dim, found shape ()")
    view = spec.granularity.blocked(x.detach())
    codes = view.new_empty(view.shape, dtype=torch.uint8)
    for grid, _, result in _grids(view, codes, scales, spec, x.shape):
        result.copy_(encode(grid, spec.element_type))
    payload = pack(unblocked(codes, spec.granularity, x.shape), spec.element_type.bits)
    return Quantized(payload, scales.stored, scales.global_scale)


def dequantize(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    spec: QuantSpec,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Return the values of a quantized tensor.

    Args:
        payload: See `Quantized`.
        scale: See `Quantized`.
        global_scale: See `Quantized`.
        spec: The format.
        shape: Shape of the result.
        dtype: Dtype of the result; products are rounded to it once, from fp32.

    Raises:
        ShapeError: payload or scale do not fit `shape`.
    """
    check_shapes(payload, scale, spec, shape)
    codes = spec.granularity.blocked(unpack(payload, spec.element_type.bits, shape[-1]))
    step = step_from_stored(scale, global_scale, spec).reshape(keepdim_shape(spec.granularity, shape))
    values = codes.new_empty(codes.shape, dtype=dtype)
    for part, result, factor in pieces([codes, values, step]):
        torch.mul(decode(part, spec.element_type), factor, out=result)
    return unblocked(values, spec.granularity, shape)


def check_shapes(payload: TensorLike, scale: TensorLike, spec: QuantSpec, shape: Sequence[int]) -> None:
    """Check the parts of a quantized tensor of `shape`.

    Raises:
        ShapeError: payload or scale do not fit `shape`.
    """
    expected = {
        "payload": (*shape[:-1], packed_length(shape[-1], spec.element_type.bits)),
        "scale": spec.granularity.scale_shape(shape),
    }
    for (part, part_shape), tensor in zip(expected.items(), (payload, scale), strict=True):
        if tuple(tensor.shape) != part_shape:
            raise ShapeError(
                f"a tensor of shape {tuple(shape)} quantized as {spec} has a {part} of shape {part_shape}, "
                f"found {tuple(tensor.shape)}"
            )


def in_range(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> Tensor:
    """Return the boolean mask of the values of `x` that quantize without saturating.

    The straight-through estimator passes gradients there (Bengio et al., arXiv:1308.3432, clipped form).
    The bounds are a hair wider than the range, so that a value equal to `amax` is always inside. Where a block
    scale was rounded down for storage, values up to the block's `amax` count as inside too.
    """
    amax, global_amax = _amax(x, state, spec)
    steps, _ = to_steps(x, state, spec)
    low, high = spec.element_type.min * RANGE_SLACK, spec.element_type.max * RANGE_SLACK
    inside = (steps >= low) & (steps <= high)
    if global_amax is not None:
        covered = torch.minimum(amax, beside(global_amax, amax))
        covered = covered.reshape(keepdim_shape(spec.granularity, x.shape))
        inside |= spec.granularity.blocked(x).abs() <= covered
    return unblocked(inside, spec.granularity, x.shape)


def _amax(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Return the largest magnitude of each block and, for two-level scales, of the tensor."""
    named = dict(zip(spec.state, state, strict=True))
    return compute_amax(x, spec) if spec.dynamic else named["amax"], named.get("global_amax")


def _grids(
    view: Tensor, results: Tensor, scales: Scales, spec: QuantSpec, shape: Sequence[int]
) -> Iterator[Sequence[Tensor]]:
    """Yield pieces: of a blocked view rounded to the element type, fp32; of the steps; of `results`, like the view."""
    for part, result, *factor in pieces([view, results, *_factors(scales, spec, shape)]):
        steps = _in_steps(part, spec, *factor)
        yield round_to_grid(steps, spec.element_type, spec.ties, scratch=steps), factor[0], result


def _factors(scales: Scales, spec: QuantSpec, shape: Sequence[int]) -> list[Tensor]:
    """Return the steps, and their inverses where there are such, as they broadcast over a blocked view."""
    keepdim = keepdim_shape(spec.granularity, shape)
    return [t.reshape(keepdim) for t in (scales.step, scales.inverse) if t is not None]


def to_steps(x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Scales]:
    """Return the blocked view of `x` in units of its steps, fp32, and the scales."""
    scales = scales_from_amax(*_amax(x, state, spec), spec)
    return _in_steps(spec.granularity.blocked(x), spec, *_factors(scales, spec, x.shape)), scales


def _in_steps(view: Tensor, spec: QuantSpec, step: Tensor, inverse: Tensor | None = None) -> Tensor:
    """Return a blocked view in units of its steps, fp32."""
    if inverse is not None:
        return view.float() * inverse
    steps = view.float() / step
    return steps.to(view.dtype).float() if spec.arithmetic == "divide_native" else steps
