"""The specs of a chain with their calibrated tensors, checked: what the reference and every kernel begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.errors import ShapeError, UnsupportedError
from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.formats.scales import SCALE_DTYPES
from octavo.core.formats.tensor_like import TensorLike


def stages(x: Tensor, state: Sequence[Tensor], spec: str) -> list[tuple[QuantSpec, Sequence[Tensor]]]:
    """Return each spec of a chain with its part of the state.

    Raises:
        ShapeError: there are more or fewer calibrated tensors than the specs take, one is not fp32 or has not the
            shape that the format has for `x`, or a granularity does not fit `x`.
        UnsupportedError: a calibrated tensor is on another device than `x`.
    """
    chain = parse_chain(spec)
    names = [name for stage in chain for name in stage.state]
    if len(state) != len(names):
        raise ShapeError(
            f"a chain of {[str(stage) for stage in chain]} takes {len(names)} calibrated tensors "
            f"({', '.join(names) or 'none'}), found {len(state)}"
        )
    rest = iter(state)
    found: list[tuple[QuantSpec, Sequence[Tensor]]] = [
        (stage, [next(rest) for _ in stage.state]) for stage in chain
    ]
    for stage, tensors in found:
        for name, tensor in zip(stage.state, tensors, strict=True):
            _check(x, name, tensor, stage)
    return found


def check_stored(
    payload: TensorLike, scale: TensorLike, global_scale: TensorLike | None, spec: QuantSpec
) -> None:
    """Check the dtypes and devices of a quantized tensor's parts; their shapes are checked where it is dequantized.

    Raises:
        ShapeError: a dtype is not the format's, or the second-level scale is missing or one too many.
        UnsupportedError: a part is on another device than `payload`.
    """
    expected = [("payload", payload, torch.uint8), ("scale", scale, SCALE_DTYPES[spec.scale])]
    if (global_scale is None) != (spec.global_max is None):
        wanted = "no global scale, found one" if spec.global_max is None else "a global scale, found none"
        raise ShapeError(f"a tensor quantized as {spec} has {wanted}")
    if global_scale is not None:
        expected.append(("global scale", global_scale, torch.float32))
    for name, part, dtype in expected:
        if part.dtype != dtype:
            raise ShapeError(f"a tensor quantized as {spec} has a {name} of {dtype}, found {part.dtype}")
        if part.device != payload.device:
            raise UnsupportedError(
                f"the payload is on {payload.device} and its {name} on {part.device}; move one to the other"
            )


def _check(x: Tensor, name: str, tensor: Tensor, spec: QuantSpec) -> None:
    shape = spec.state_shape(name, x.shape)
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise ShapeError(
            f"{name} of {spec} for a tensor of shape {tuple(x.shape)} is torch.float32 of shape {shape}, "
            f"found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise UnsupportedError(f"x is on {x.device} and {name} on {tensor.device}; move one to the other")
