"""Kernels between values and packed codes; see `core.formats.packing` for the order of bits."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.device.blocks import maxima_of, steps_of, values_of
from octavo.kernels.triton.device.grid import decode, encode, to_grid
from octavo.kernels.triton.device.numbers import rounded
from octavo.kernels.triton.device.scales import stored_step
from octavo.kernels.triton.device.tile import blocks_of, elements_of, global_of, place_of, rows_of, scale_of


@triton.jit
def quantize_kernel(
    payload, stored, x, amax, global_amax, view, FORMAT: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr
):
    """Store codes in `BITS` bits each, and where blocks own their scales these, as fp32 numbers or uint8 codes."""
    block, exists = blocks_of(view, TILE)
    values, _, is_there = values_of(x, block, exists, view, TILE)
    largest, largest_of_all = maxima_of(values, amax, global_amax, block, exists, view, FORMAT)
    steps, _, scale = steps_of(values, largest, largest_of_all, FORMAT, x.dtype.element_ty)
    codes = tl.where(is_there, encode(to_grid(steps, FORMAT), FORMAT), 0)
    _store_packed(payload, codes, block, exists, view, TILE, BITS)
    if TILE.owns_scales:
        tl.store(stored + scale_of(block, view), scale.to(stored.dtype.element_ty), mask=exists)


@triton.jit
def _store_packed(payload, codes, block, exists, view, TILE: tl.constexpr, BITS: tl.constexpr):
    """Store codes [blocks, rows, cols] as one little-endian stream of bits for each row of the view."""
    per_group: tl.constexpr = (
        8 if BITS % 2 else (4 if BITS % 4 else 8 // BITS)
    )  # codes that fill bytes together
    num_bytes: tl.constexpr = per_group * BITS // 8
    groups: tl.constexpr = TILE.padded_cols // per_group
    grouped = tl.reshape(codes, (TILE.blocks, TILE.padded_rows, groups, per_group))
    if num_bytes > 3:
        grouped = grouped.to(tl.int64)
    shifts = (tl.arange(0, per_group) * BITS)[None, None, None, :]
    words = tl.sum(grouped << shifts, axis=3)
    row, has_row = rows_of(block, exists, view, TILE)
    _, _, col_block = place_of(block, view)
    first = col_block[:, None, None] * (TILE.cols * BITS // 8)
    for byte in tl.static_range(num_bytes):
        within = tl.arange(0, groups)[None, None, :] * num_bytes + byte
        is_there = has_row & (within * 8 < TILE.cols * BITS) & (first + within < view.row_bytes)
        bits = ((words >> (8 * byte)) & 0xFF).to(tl.uint8)
        tl.store(payload + row * view.row_bytes + first + within, bits, mask=is_there)


@triton.jit
def dequantize_kernel(
    result, payload, stored, global_scale, view, FORMAT: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr
):
    """Store `core.formats.dequantize(payload, stored, global_scale)`; codes have `BITS` bits each."""
    block, exists = blocks_of(view, TILE)
    codes = _load_packed(payload, block, exists, view, TILE, BITS) & ((1 << FORMAT.bits) - 1)
    scale = tl.load(stored + scale_of(block, view), mask=exists, other=0)
    if FORMAT.scale == "e4m3":
        largest = tl.load(global_scale + global_of(block, view), mask=exists, other=1.0)
        step = stored_step(scale, largest, FORMAT)
    else:
        step = stored_step(scale, scale, FORMAT)
    offsets, is_there = elements_of(block, exists, view, TILE)
    values = decode(codes, FORMAT) * step[:, None, None]
    tl.store(result + offsets, rounded(values, result.dtype.element_ty), mask=is_there)


@triton.jit
def _load_packed(payload, block, exists, view, TILE: tl.constexpr, BITS: tl.constexpr):
    """Return codes, int32 [blocks, rows, cols], with what else the bytes hold above them."""
    row, has_row = rows_of(block, exists, view, TILE)
    _, _, col_block = place_of(block, view)
    bit = tl.arange(0, TILE.padded_cols)[None, None, :] * BITS
    byte = col_block[:, None, None] * (TILE.cols * BITS // 8) + bit // 8
    is_there = has_row & (bit < TILE.cols * BITS) & (byte < view.row_bytes)
    start = payload + row * view.row_bytes + byte
    codes = tl.load(start, mask=is_there, other=0).to(tl.int32)
    if 8 % BITS:  # a code may go on in the next byte
        more = tl.load(start + 1, mask=is_there & (byte + 1 < view.row_bytes), other=0).to(tl.int32)
        codes = codes | (more << 8)
    return codes >> (bit % 8)
