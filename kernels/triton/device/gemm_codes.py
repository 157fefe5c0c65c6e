"""Product of two tensors of codes, each with a scale for its rows or for all: FP8 by FP8, INT8 by INT8."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.gemm_tiles import multiply_add, store_tile, tile_of


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def gemm_codes_kernel(
    x,
    x_scale,
    weight,
    stored,
    bias,
    out,
    rows,
    row_blocks,
    num_out,
    num_in,
    split_in,
    X_SCALES: tl.constexpr,
    WEIGHT_SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    EVEN_IN: tl.constexpr,
):
    """Store codes x [rows, in] times codes [out, in], each row times its scale, in `out` [splits, rows, out].

    Codes are e4m3 or int8. Where X_SCALES is 0 one scale is for all rows, where it is 1 each row has its own; likewise
    WEIGHT_SCALES. A split sums `split_in` columns; the first one adds the bias.
    """
    row_block, n, inside = tile_of(row_blocks, num_out, BLOCK_OUT)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_inside = row < rows
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    begin = tl.program_id(1) * split_in
    for start in range(begin, min(begin + split_in, num_in), BLOCK_IN):
        k = start + tl.arange(0, BLOCK_IN)
        x_mask = row_inside[:, None] if EVEN_IN else row_inside[:, None] & (k < num_in)[None, :]
        mask = inside[:, None] if EVEN_IN else inside[:, None] & (k < num_in)[None, :]
        x_tile = tl.load(x + row[:, None] * num_in + k[None, :], mask=x_mask, other=0.0)
        weight_tile = tl.load(weight + n[:, None] * num_in + k[None, :], mask=mask, other=0.0)
        acc = multiply_add(x_tile, weight_tile, acc)
    row_scale = tl.load(x_scale + row * X_SCALES, mask=row_inside, other=0.0)
    out_scale = tl.load(stored + n * WEIGHT_SCALES, mask=inside, other=0.0)
    total = acc.to(tl.float32) * row_scale[:, None] * out_scale[None, :]
    store_tile(out, total, bias, n, rows, row, row_inside, num_out, n, inside)
