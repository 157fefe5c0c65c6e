"""Product of two tensors of codes, each with a scale for its rows or for all: FP8 by FP8, INT8 by INT8."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def gemm_codes(
    x,
    x_scale,
    weight,
    scale,
    bias,
    out,
    rows,
    row_blocks,
    num_out,
    num_in,
    split_in,
    x_scales: tl.constexpr,
    weight_scales: tl.constexpr,
    block_rows: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    even_in: tl.constexpr,
):
    """Store codes x [rows, in] times codes [out, in], each row times its scale, in `out` [splits, rows, out].

    Codes are e4m3 or int8. Integers are summed exactly; FP8 products in fp32, of which Hopper's tensor cores keep few
    bits, so that their sums of 128 columns are added up outside of them. Where `x_scales` is 0 one scale is for all
    rows, where it is 1 each row has its own; likewise `weight_scales`. A split sums `split_in` columns; the first one
    adds the bias.
    """
    out_blocks = tl.cdiv(num_out, block_out)
    out_block, row_block = tl.swizzle2d(
        tl.program_id(0) // row_blocks, tl.program_id(0) % row_blocks, out_blocks, row_blocks, 8
    )
    row = row_block.to(tl.int64) * block_rows + tl.arange(0, block_rows)
    n = out_block.to(tl.int64) * block_out + tl.arange(0, block_out)
    row_inside, inside = row < rows, n < num_out
    is_integer: tl.constexpr = x.dtype.element_ty == tl.int8
    acc_dtype: tl.constexpr = tl.int32 if is_integer else tl.float32
    acc = tl.zeros((block_rows, block_out), acc_dtype)
    begin = tl.program_id(1) * split_in
    for start in range(begin, min(begin + split_in, num_in), block_in):
        k = start + tl.arange(0, block_in)
        x_mask = row_inside[:, None] if even_in else row_inside[:, None] & (k < num_in)[None, :]
        mask = inside[:, None] if even_in else inside[:, None] & (k < num_in)[None, :]
        left = tl.load(x + row[:, None] * num_in + k[None, :], mask=x_mask, other=0.0)
        right = tl.load(weight + n[:, None] * num_in + k[None, :], mask=mask, other=0.0)
        if is_integer:
            acc = tl.dot(left, tl.trans(right), acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(left, tl.trans(right), acc, max_num_imprecise_acc=128)
    row_scale = tl.load(x_scale + row * x_scales, mask=row_inside, other=0.0)
    out_scale = tl.load(scale + n * weight_scales, mask=inside, other=0.0)
    total = acc.to(tl.float32) * row_scale[:, None] * out_scale[None, :]
    if bias is not None and tl.program_id(1) == 0:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    target = out + (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * num_out + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=row_inside[:, None] & inside[None, :])
