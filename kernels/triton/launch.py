"""Starting kernels: the tile of each program, the device, and no fused arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.kernels.triton.geometry import Geometry, Tile, View, geometry, power_of_two
from octavo.kernels.triton.number_format import number_format
from octavo.kernels.triton.tuning import Launch, chosen, problem

# The first is the default: a few thousand elements keep enough loads under way to fill the memory's bandwidth.
_CANDIDATES: Sequence[Launch] = (
    {"tile": 4096, "num_warps": 4},
    {"tile": 1024, "num_warps": 4},
    {"tile": 2048, "num_warps": 4},
    {"tile": 2048, "num_warps": 8},
    {"tile": 4096, "num_warps": 8},
    {"tile": 8192, "num_warps": 8},
)
_MANY_ELEMENTS = 8192  # of one block, for which four warps have too few registers
_LONGEST_ROTATION = min(launch["tile"] for launch in _CANDIDATES)
_WIDE = 2**31 - 2**20  # elements from which offsets, some of which lie behind the end, may not fit 32 bits


def default_geometry(spec: QuantSpec, shape: Sequence[int], whole: bool = False) -> Geometry | None:
    """Return how the default launch cuts a tensor of `shape`; see `geometry`."""
    return geometry(spec.granularity, tuple(shape), _CANDIDATES[0]["tile"], whole)


def start(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    spec: QuantSpec,
    shape: Sequence[int],
    whole: bool = False,
    with_format: bool = True,
    bits: int | None = None,
    rotation: int | None = None,
) -> None:
    """Run `kernel` over a tensor of `shape` quantized as `spec`.

    Args:
        kernel: One of `device`, which takes tensors, the view, then `FORMAT`, `TILE` and `BITS` as it has them.
        tensors: Its tensors, contiguous, results first; None where it reads none.
        spec: The format.
        shape: Not empty; `default_geometry` is not None for it.
        whole: As in `geometry`.
        with_format: Whether it takes `FORMAT`.
        bits: Its `BITS`, and the width of codes in memory; None if it takes none.
        rotation: Its `LENGTH`, of blocks that are transformed, 1 for none; None if it takes none.
    """
    constants: dict[str, Any] = {"FORMAT": number_format(spec)} if with_format else {}
    if bits is not None:
        constants["BITS"] = bits
    if rotation is not None:
        constants |= {"LENGTH": rotation, "STEPS": rotation.bit_length() - 1}
    device = next(t.device for t in tensors if t is not None)

    def run(launch: Launch) -> None:
        cut = geometry(spec.granularity, tuple(shape), launch["tile"], whole)
        assert cut is not None  # noqa: S101 (the caller asked default_geometry)
        tile = tile_of(cut, launch["tile"], bits)
        view = view_of(cut, shape[0] if spec.is_stacked else 1, bits)
        with on(device):
            kernel[(-(-cut.num_blocks // tile.blocks),)](
                *tensors,
                view,
                TILE=tile,
                **constants,
                num_warps=max(launch["num_warps"], 8 if _padded(tile) >= _MANY_ELEMENTS else 1),
                enable_fp_fusion=False,
            )

    variant = f"{spec.key} {bits} {whole} {rotation} {[t.dtype for t in tensors if t is not None]}"
    run(chosen(_CANDIDATES, lambda: problem(kernel, variant, shape, device), run))


def tile_of(cut: Geometry, tile: int, bits: int | None = None) -> Tile:
    """Return the part of each program that is to read about `tile` elements in whole blocks."""
    per_group = 8 if bits is not None else 1  # codes that fill whole bytes together
    padded_rows, padded_cols = power_of_two(cut.block_rows), power_of_two(max(cut.block_cols, per_group))
    blocks = min(max(1, tile // (padded_rows * padded_cols)), power_of_two(cut.num_blocks))
    num_elements = cut.outer * cut.rows * cut.cols
    lengths = cut.block_rows, cut.block_cols, padded_rows, padded_cols
    return Tile(blocks, *lengths, cut.owns_scales, num_elements >= _WIDE)


def view_of(cut: Geometry, num_globals: int = 1, bits: int | None = None) -> View:
    """Return the lengths and strides of a tensor of `num_globals` stacked ones, with codes of `bits` bits."""
    row_bytes = 0 if bits is None else -(-cut.cols * bits // 8)
    blocks = cut.num_blocks, cut.rows, cut.cols, cut.row_blocks, cut.col_blocks
    return View(*blocks, *cut.strides, cut.outer // num_globals, row_bytes)


def packs(cut: Geometry, shape: Sequence[int], bits: int) -> bool:
    """Return whether no byte of packed codes belongs to two blocks or two rows of the view."""
    whole_rows = cut.cols == shape[-1] or shape[-1] * bits % 8 == 0
    return whole_rows and (cut.block_cols * bits % 8 == 0 or cut.col_blocks == 1)


def rotates(cut: Geometry, length: int) -> bool:
    """Return whether the values that a program holds are whole blocks of `length`, one after the other in memory."""
    if cut.block_rows > 1 or length > _LONGEST_ROTATION:
        return False
    aligned = cut.block_cols % length == 0 or (cut.col_blocks == 1 and cut.cols % length == 0)
    padded = power_of_two(cut.block_cols)
    return aligned or (padded == cut.block_cols and cut.cols % padded == 0)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the current one; Triton's interpreter works on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _padded(tile: Tile) -> int:
    return tile.blocks * tile.padded_rows * tile.padded_cols
