"""`packed_linear` and `packed_expert_linear`: what of them the kernels compute, and which kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import parse_chain
from octavo.core.ops.calls import NOTHING, operand
from octavo.kernels.triton.gemm_formats import INTEGERS_ADD_UP_TO, multiplies_codes, weight_format
from octavo.kernels.triton.gemm_weight import Weight, has_fp8, read_weight
from octavo.kernels.triton.support import DTYPES


def packed_linear(
    x: Tensor,
    bias: Tensor | None,
    x_state: Sequence[Tensor],
    x_spec: str,
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    weight_dtype: torch.dtype,
    x_range_mask: bool,
    dtype: torch.dtype | None,
) -> Any:
    """Compute the operator; fp32 sums in an order of their own.

    FP8 inputs and weights (on devices that multiply FP8) and INT8 ones are multiplied as codes and scaled once, without
    the rounding of each operand to `dtype`, which emulation adds to what engines compute.
    """
    from octavo.kernels.triton.gemm_launch import multiply, multiply_codes

    used = dtype or x.dtype
    weight = read_weight(payload, scale, global_scale, weight_spec, x.shape[-1], weight_dtype)
    if weight is None or weight.num_experts != 1 or payload.dim() != 2 or then_spec != NOTHING:
        return NotImplemented
    if dtype is not None and bias is not None:
        bias = bias.to(dtype)
    if not _multiplies(x, used, weight, bias, dtype is not None):
        return NotImplemented
    bias = None if bias is None else bias.contiguous()
    shape = (*x.shape[:-1], weight.num_out)
    codes = _code_dtype(x, x_spec, weight_spec, used)
    if codes is not None:
        rows, scales = _coded_rows(x, x_state, x_spec, codes)
        return multiply_codes(rows, scales, weight, bias, used).view(shape)
    values = operand(x, x_state, x_spec).to(used)
    return multiply(_rows(values), weight, bias).view(shape)


def packed_expert_linear(
    x: Tensor,
    expert: Tensor,
    bias: Tensor | None,
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    weight_spec: str,
    then_state: Sequence[Tensor],
    then_spec: str,
    weight_dtype: torch.dtype,
    dtype: torch.dtype | None,
) -> Any:
    """Compute the operator; fp32 sums in an order of their own.

    An expert that does not exist stops the device, as it does in torch's own indexing: asking first would wait for it.
    """
    from octavo.kernels.triton.gemm_launch import multiply

    used = dtype or x.dtype
    weight = read_weight(payload, scale, global_scale, weight_spec, x.shape[-1], weight_dtype)
    if weight is None or payload.dim() != 3 or then_spec != NOTHING or expert.device != x.device:
        return NotImplemented
    if x.dim() != 2 or expert.shape != x.shape[:1] or expert.dtype != torch.int64:
        return NotImplemented
    if dtype is not None and bias is not None:
        bias = bias.to(dtype)
    if not _multiplies(x, used, weight, bias, dtype is not None):
        return NotImplemented
    exist = ((expert >= 0) & (expert < weight.num_experts)).all()
    torch._assert_async(exist, f"rows name experts below 0, or above the last one, {weight.num_experts - 1}")
    return multiply(_rows(x.to(used)), weight, None if bias is None else bias.contiguous(), expert)


def _multiplies(x: Tensor, used: torch.dtype, weight: Weight, bias: Tensor | None, is_cast: bool) -> bool:
    """Return whether the kernels take the operands' dtypes, shapes and device; the reference names what is wrong."""
    dtypes = {used, weight.dtype} if is_cast else {used, weight.dtype, x.dtype}
    if not dtypes <= set(DTYPES) or (not is_cast and len(dtypes) > 1) or x.device != weight.payload.device:
        return False
    if bias is None:
        return True
    shape = (weight.num_out,) if weight.payload.dim() == 2 else (weight.num_experts, weight.num_out)
    return (bias.dtype, bias.device, tuple(bias.shape)) == (used, x.device, shape)


def _rows(x: Tensor) -> Tensor:
    """Return `x` as [rows, in] whose last dim is contiguous."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(x.shape[:-1].numel(), 0)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _code_dtype(x: Tensor, x_spec: str, weight_spec: str, used: torch.dtype) -> torch.dtype | None:
    """Return the dtype of the codes that are multiplied, or None where values are.

    fp32 operands are not multiplied as FP8: the sums of such products are less exact than that.
    """
    if not multiplies_codes(x_spec, weight_spec):
        return None
    if parse_chain(weight_spec)[0].element != "e4m3":
        return torch.int8 if x.shape[-1] < INTEGERS_ADD_UP_TO else None
    return torch.float8_e4m3fn if has_fp8(x.device) and used != torch.float32 else None


def _coded_rows(
    x: Tensor, x_state: Sequence[Tensor], x_spec: str, codes: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the codes of `x` [rows, in] and their scales, fp32 [1] or [rows]."""
    payload, scale = torch.ops.octavo.quantize(x, x_state, x_spec)
    rows = payload.reshape(x.shape[:-1].numel(), x.shape[-1]).view(codes)
    scales = scale.reshape(-1)
    if codes == torch.int8:  # which has no NaN: it is put into the scale
        nan = x.isnan().any(-1).reshape(-1)
        scales = torch.where(nan, torch.nan, scales)
    return rows, scales


def declined(spec: str) -> str | None:
    """Return why products with weights of the chain `spec` are left to the reference, or None."""
    form = weight_format(spec)
    return form if isinstance(form, str) else None
