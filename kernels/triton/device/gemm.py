"""Product of rows with packed weights that are dequantized on the way to the tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.gemm_decode import byte_tile, half_tiles, step_tile, whole_tile


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def gemm(
    x,
    payload,
    scale,
    global_scale,
    bias,
    out,
    order,
    block_expert,
    block_first,
    block_end,
    rows,
    row_blocks,
    num_out,
    num_in,
    split_in,
    x_stride,
    row_bytes,
    scale_rows,
    scale_columns,
    element: tl.constexpr,
    bits: tl.constexpr,
    scale_kind: tl.constexpr,
    rows_per_scale: tl.constexpr,
    columns_per_scale: tl.constexpr,
    weight_dtype: tl.constexpr,
    block_rows: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
    group: tl.constexpr,
    even_in: tl.constexpr,
):
    """Store x [rows, in] times weights [out, in] in `out` [splits, rows, out], one program for each tile and split.

    A split sums the products of `split_in` columns; the first one adds the bias. With `order`, tile i of rows is
    order[block_first[i]:block_end[i]], which have the weight block_expert[i] of stacked ones.
    """
    out_blocks = tl.cdiv(num_out, block_out)
    out_block, row_block = tl.swizzle2d(
        tl.program_id(0) // row_blocks, tl.program_id(0) % row_blocks, out_blocks, row_blocks, 8
    )
    if order is not None:
        first, end = tl.load(block_first + row_block), tl.load(block_end + row_block)
        if first >= end:
            return
        place = first + tl.arange(0, block_rows)
        row_inside = place < end
        row = tl.load(order + place, mask=row_inside, other=0)
        expert = tl.load(block_expert + row_block)
    else:
        row = row_block.to(tl.int64) * block_rows + tl.arange(0, block_rows)
        row_inside = row < rows
        expert = tl.cast(0, tl.int64)
    n = out_block * block_out + tl.arange(0, block_out)
    inside = n < num_out
    weight_row = expert * num_out + n
    scale_row = expert * scale_rows + (n // rows_per_scale if rows_per_scale > 0 else n * 0)
    factor = tl.load(global_scale + expert) if global_scale is not None else 1.0
    dtype: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros((block_rows, block_out), tl.float32)
    begin = tl.program_id(1) * split_in
    for start in range(begin, min(begin + split_in, num_in), block_in):
        k = start + tl.arange(0, block_in)
        x_mask = row_inside[:, None] if even_in else row_inside[:, None] & (k < num_in)[None, :]
        x_tile = tl.load(x + row[:, None] * x_stride + k[None, :], mask=x_mask, other=0.0)
        column = start + tl.arange(0, block_in // group) * group
        steps = step_tile(
            scale, factor, scale_row, inside, column, num_in, scale_columns, scale_kind, columns_per_scale
        )
        codes = byte_tile(payload, weight_row, inside, start * bits // 8, row_bytes, block_in * bits // 8)
        if bits == 4:
            even, odd = half_tiles(codes, steps, element, weight_dtype, dtype)
            weight = tl.reshape(tl.join(even, odd), (block_out, block_in))
        else:
            weight = tl.reshape(whole_tile(codes, steps, element, weight_dtype, dtype), (block_out, block_in))
        if not even_in:
            weight = tl.where((k < num_in)[None, :], weight, 0.0)
        acc = tl.dot(x_tile, tl.trans(weight), acc, input_precision="ieee")
    if bias is not None and tl.program_id(1) == 0:
        acc += tl.load(bias + weight_row, mask=inside, other=0.0).to(tl.float32)[None, :]
    target = out + (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * num_out + n[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=row_inside[:, None] & inside[None, :])
