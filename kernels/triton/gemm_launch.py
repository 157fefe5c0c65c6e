"""From a product to its launches: the tile that is used, one kernel for the tiles, one more if columns are split.

Imports Triton: import this module on use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.triton.device.gemm import WEIGHT_DTYPES, gemm_kernel
from octavo.kernels.triton.device.gemm_codes import gemm_codes_kernel
from octavo.kernels.triton.device.sum_splits import sum_splits_kernel
from octavo.kernels.triton.gemm_blocks import blocks_of_experts
from octavo.kernels.triton.gemm_formats import WeightFormat
from octavo.kernels.triton.gemm_tiles import tiles
from octavo.kernels.triton.gemm_weight import Weight
from octavo.kernels.triton.launch import on
from octavo.kernels.triton.tuning import Launch, bucket, chosen, problem

_NO_BLOCKS = (None, None, None, None)
_SUM_BLOCK = 1024


def multiply(x: Tensor, weight: Weight, bias: Tensor | None, expert: Tensor | None = None) -> Tensor:
    """Return x [rows, in] times the weight, plus `bias`, [rows, out], of the dtype of `x`.

    Args:
        x: fp32, fp16 or bf16; the last dim is contiguous.
        weight: What it is multiplied with, rounded to the dtype of `x`.
        bias: [out], or [experts, out]; contiguous.
        expert: int64 [rows] on the device of `x`: the weight of each row, if they are stacked.
    """
    rows = x.shape[0]

    def launch(tile: Launch, out: Tensor, split_in: int, splits: int) -> None:
        blocks = None if expert is None else blocks_of_experts(expert, weight.num_experts, tile["block_rows"])
        row_blocks = math.ceil(rows / tile["block_rows"]) if blocks is None else blocks.first.shape[0]
        grid = (row_blocks * math.ceil(weight.num_out / tile["block_out"]), splits)
        gemm_kernel[grid](
            x,
            weight.payload,
            weight.scale,
            weight.global_scale,
            bias,
            out,
            *(blocks or _NO_BLOCKS),
            rows,
            row_blocks,
            weight.num_out,
            weight.num_in,
            split_in,
            x.stride(0),
            weight.payload.shape[-1],
            weight.scale_rows,
            weight.scale_columns,
            PER_UNIT=weight.per_unit,
            FP8=weight.converts_fp8,
            WEIGHT=WEIGHT_DTYPES[weight.dtype],
            **format_constants(weight.form, tile),
            **tile_constants(tile, weight.num_in),
            **_options(tile),
        )

    variant = f"{weight.form} {weight.dtype} {x.dtype} experts={expert is not None} {weight.per_unit}"
    return _run(x, weight.num_out, gemm_kernel, variant, launch)


def multiply_codes(
    x: Tensor, x_scale: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the product of codes, [rows, out] of `dtype`.

    Args:
        x: Codes [rows, in], contiguous: float8_e4m3fn, or int8.
        x_scale: fp32 [1] or [rows], contiguous: what code 1 stands for.
        weight: Codes of the same type with one scale, or one for each row.
        bias: [out], contiguous.
        dtype: Dtype of the result.
    """
    rows = x.shape[0]
    codes = weight.payload.view(x.dtype)

    def launch(tile: Launch, out: Tensor, split_in: int, splits: int) -> None:
        row_blocks = math.ceil(rows / tile["block_rows"])
        grid = (row_blocks * math.ceil(weight.num_out / tile["block_out"]), splits)
        gemm_codes_kernel[grid](
            x,
            x_scale,
            codes,
            weight.scale,
            bias,
            out,
            rows,
            row_blocks,
            weight.num_out,
            weight.num_in,
            split_in,
            X_SCALES=int(x_scale.shape[0] == rows),
            WEIGHT_SCALES=weight.form.rows_per_scale,
            **tile_constants(tile, weight.num_in),
            **_options(tile),
        )

    variant = f"{weight.form} {x.dtype} {dtype} {x_scale.shape[0] == rows}"
    return _run(x, weight.num_out, gemm_codes_kernel, variant, launch, dtype)


def _run(
    x: Tensor,
    num_out: int,
    kernel: Any,
    variant: str,
    launch: Callable[[Launch, Tensor, int, int], None],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the result of `launch` with the tile to use, summed over its splits."""
    rows, num_in = x.shape
    out = x.new_empty(rows, num_out, dtype=dtype or x.dtype)
    if out.numel() == 0:
        return out

    def run(tile: Launch) -> None:
        split_in, splits = _splits(num_in, tile)
        if splits == 1:
            launch(tile, out, split_in, 1)
            return
        partial = out.new_empty(splits, *out.shape, dtype=torch.float32)
        launch(tile, partial, split_in, splits)
        grid = (math.ceil(out.numel() / _SUM_BLOCK),)
        sum_splits_kernel[grid](partial, out, out.numel(), splits, _SUM_BLOCK, enable_fp_fusion=False)

    with on(x.device):
        lengths = (rows, num_out, num_in)
        candidates = tiles(*bucket(lengths), bits=8 * x.element_size())
        run(chosen(candidates, lambda: problem(kernel, variant, lengths, x.device), run))
    return out


def _splits(num_in: int, tile: Launch) -> tuple[int, int]:
    """Return columns of a split, whole tiles, and how many splits there are then; none is empty but the only one."""
    length = math.ceil(max(1, num_in) / tile["splits"] / tile["block_in"]) * tile["block_in"]
    return length, max(1, math.ceil(num_in / length))


def format_constants(form: WeightFormat, tile: Launch) -> dict[str, Any]:
    """Return what `gemm_kernel` is compiled for, by names of its arguments: the format and its groups in a tile."""
    return {
        "FORMAT": form.numbers,
        "ROWS_PER_SCALE": form.rows_per_scale,
        "COLUMNS_PER_SCALE": form.columns_per_scale,
        "GROUP": min(form.columns_per_scale or tile["block_in"], tile["block_in"]),
    }


def tile_constants(tile: Launch, num_in: int) -> dict[str, Any]:
    """Return what kernels of products are compiled for with a launch, by names of their arguments."""
    lengths = {name.upper(): tile[name] for name in ("block_rows", "block_out", "block_in")}
    return {**lengths, "EVEN_IN": num_in % tile["block_in"] == 0}


def _options(tile: Launch) -> dict[str, Any]:
    return {"num_warps": tile["num_warps"], "num_stages": tile["num_stages"], "enable_fp_fusion": False}
