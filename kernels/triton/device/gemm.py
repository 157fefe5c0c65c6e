"""Product of rows with packed weights that are dequantized on the way to the tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.device.gemm_tiles import (
    multiply_add,
    step_tile,
    store_tile,
    tile_of,
    unit_tile,
    weight_tile,
)

WEIGHT_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def gemm_kernel(
    x,
    payload,
    stored,
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
    row_units,
    scale_rows,
    scale_columns,
    FORMAT: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    COLUMNS_PER_SCALE: tl.constexpr,
    PER_UNIT: tl.constexpr,
    FP8: tl.constexpr,
    WEIGHT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_IN: tl.constexpr,
):
    """Store x [rows, in] times weights [out, in] in `out` [splits, rows, out], one program for each tile and split.

    A split sums the products of `split_in` columns; the first one adds the bias. With `order`, tile i of rows is
    order[block_first[i]:block_end[i]], which have the weight block_expert[i] of stacked ones. The values of weights
    are rounded to the dtype WEIGHT, then to that of `x`. Units of `payload` hold PER_UNIT codes; with FP8 the device
    converts e4m3. GROUP columns of a tile share a scale; EVEN_IN says that tiles of BLOCK_IN columns cover the weight
    without a rest.
    """
    row_block, n, inside = tile_of(row_blocks, num_out, BLOCK_OUT)
    if order is not None:
        first, end = tl.load(block_first + row_block), tl.load(block_end + row_block)
        if first >= end:
            return
        place = first + tl.arange(0, BLOCK_ROWS)
        row_inside = place < end
        row = tl.load(order + place, mask=row_inside, other=0)
        expert = tl.load(block_expert + row_block)
    else:
        row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_inside = row < rows
        expert = tl.cast(0, tl.int64)
    weight_row = expert * num_out + n
    scale_row = expert * scale_rows + (n // ROWS_PER_SCALE if ROWS_PER_SCALE > 0 else n * 0)
    factor = tl.load(global_scale + expert) if global_scale is not None else 1.0
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    begin = tl.program_id(1) * split_in
    for start in range(begin, min(begin + split_in, num_in), BLOCK_IN):
        k = start + tl.arange(0, BLOCK_IN)
        x_mask = row_inside[:, None] if EVEN_IN else row_inside[:, None] & (k < num_in)[None, :]
        x_tile = tl.load(x + row[:, None] * x_stride + k[None, :], mask=x_mask, other=0.0)
        column = start + tl.arange(0, BLOCK_IN // GROUP) * GROUP
        steps = step_tile(
            stored, factor, scale_row, inside, column, num_in, scale_columns, FORMAT, COLUMNS_PER_SCALE
        )
        units = unit_tile(payload, weight_row, inside, start // PER_UNIT, row_units, BLOCK_IN // PER_UNIT)
        weight = weight_tile(units, steps, FORMAT, PER_UNIT, FP8, (WEIGHT, x.dtype.element_ty))
        if not EVEN_IN:  # a scale may be infinite, which times the codes beyond the end is NaN
            weight = tl.where((k < num_in)[None, :], weight, 0.0)
        acc = multiply_add(x_tile, weight, acc)
    store_tile(out, acc, bias, weight_row, rows, row, row_inside, num_out, n, inside)
