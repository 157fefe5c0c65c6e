"""What operators on packed weights refuse: operands that do not fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.errors import ShapeError, UnsupportedError
from octavo.core.formats import QuantSpec, parse_chain
from octavo.core.formats.quantization import check_shapes
from octavo.core.formats.tensor_like import TensorLike
from octavo.core.ops.stages import check_stored

Weight = tuple[TensorLike, TensorLike, TensorLike | None]  # payload, scale, global scale


class Kind(NamedTuple):
    """What is checked of a tensor; hashable, so that a kernel checks operands of one kind once."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        """Return the kind of a tensor without symbolic sizes."""
        return cls(tensor.shape, tensor.dtype, tensor.device)


def check_packed_linear(
    x: TensorLike,
    bias: TensorLike | None,
    weight: Weight,
    weight_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
) -> None:
    """Check the operands of `packed_linear`; arguments as of the operator.

    Raises:
        ShapeError: a shape or a dtype does not fit.
        UnsupportedError: a tensor is on another device than `x`.
    """
    if len(x.shape) == 0:
        raise ShapeError("x of a packed linear layer is [..., in_features], found a scalar")
    _check(x, bias, weight, weight_spec, weight_dtype, dtype, num_dims=2)


def check_packed_expert_linear(
    x: TensorLike,
    expert: TensorLike,
    bias: TensorLike | None,
    weight: Weight,
    weight_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
) -> None:
    """Check the operands of `packed_expert_linear`, but not the values of `expert`; see `check_experts`.

    Raises:
        ShapeError, UnsupportedError: as `check_packed_linear`.
    """
    if len(x.shape) != 2:
        raise ShapeError(f"x of packed experts is [rows, in_features], found shape {tuple(x.shape)}")
    if expert.dtype != torch.int64 or len(expert.shape) != 1 or expert.shape[0] != x.shape[0]:
        raise ShapeError(
            f"expert is int64 [{x.shape[0]}], a weight for each row of x, "
            f"found {_name(expert.dtype)} {list(expert.shape)}"
        )
    _check_device(x, "expert", expert)
    _check(x, bias, weight, weight_spec, weight_dtype, dtype, num_dims=3)


def check_experts(used: Sequence[int], num_experts: int) -> None:
    """Check the numbers of experts that rows ask for.

    Raises:
        ShapeError: there is no expert of a number.
    """
    for index in used:
        if not 0 <= index < num_experts:
            raise ShapeError(
                f"there are {num_experts} experts, 0 to {num_experts - 1}; a row asks for {index}"
            )


def _check(
    x: TensorLike,
    bias: TensorLike | None,
    weight: Weight,
    weight_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
    num_dims: int,
) -> None:
    payload, _, _ = weight
    if len(payload.shape) != num_dims:
        raise ShapeError(f"payload of the weight has {num_dims} dims, found shape {tuple(payload.shape)}")
    (spec,) = parse_chain(weight_spec)
    _check_parts(x, weight, spec, (*payload.shape[:-1], x.shape[-1]))
    if bias is not None:
        _check_device(x, "bias", bias)
        _check_shape("bias", bias, payload.shape[:-1])
    if dtype is None:
        _check_dtypes(x, bias, weight_dtype)


def _check_parts(x: TensorLike, weight: Weight, spec: QuantSpec, shape: tuple[int, ...]) -> None:
    if spec.is_stacked != (len(shape) == 3):
        raise ShapeError(f"a weight of shape {shape} is not of the format {spec}")
    payload, scale, global_scale = weight
    _check_device(x, "the weight", payload)
    check_stored(payload, scale, global_scale, spec)
    check_shapes(payload, scale, spec, shape)
    if global_scale is not None:
        _check_shape(
            f"the global scale of a weight {shape}", global_scale, spec.state_shape("global_amax", shape)
        )


def _check_shape(name: str, part: TensorLike, shape: Sequence[int]) -> None:
    if tuple(part.shape) != tuple(shape):
        raise ShapeError(f"{name} has shape {tuple(shape)}, found {tuple(part.shape)}")


def _check_dtypes(x: TensorLike, bias: TensorLike | None, weight_dtype: torch.dtype) -> None:
    found = {"x": x.dtype, "the weight's values": weight_dtype}
    if bias is not None:
        found["bias"] = bias.dtype
    if len(set(found.values())) > 1 or not x.dtype.is_floating_point:
        listed = ", ".join(f"{name} {_name(dtype)}" for name, dtype in found.items())
        raise ShapeError(f"operands of a product outside autocast have one float dtype, found {listed}")


def _check_device(x: TensorLike, name: str, part: TensorLike) -> None:
    if part.device != x.device and x.device.type != "meta":
        raise UnsupportedError(f"x is on {x.device} and {name} on {part.device}; move one to the other")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
