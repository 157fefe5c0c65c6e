"""AWQ's clipping of weight ranges (arXiv:2306.00978), by ModelOpt 0.47's rules: each block by its own output error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.core.calibration.solvers.awq import block_length
from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.errors import UnsupportedError
from octavo.core.formats import QuantSpec, fake_quantize
from octavo.core.formats.pieces import pieces


def clip_ratios(min_clip_ratio: float = 0.5, shrink_step: float = 0.05) -> list[float]:
    """Return the parts of the largest magnitude that are tried, ascending, ending with 1."""
    return [round(float(r), 2) for r in torch.arange(min_clip_ratio, 1.0, shrink_step)] + [1.0]


def block_errors(change: Tensor, grams: Tensor) -> Tensor:
    """Return the squared output error of each row's blocks alone, fp32 [out, blocks].

    Errors of different blocks also add up in the output; like ModelOpt, this leaves those products out, so that
    every block is chosen alone.

    Args:
        change: fp32 [out, in], the rounded weight minus the weight.
        grams: fp32 [blocks, block, block].
    """
    num_blocks, block, _ = grams.shape
    padded = torch.nn.functional.pad(change, (0, num_blocks * block - change.shape[1]))
    blocks = padded.reshape(change.shape[0], num_blocks, block).transpose(0, 1)  # [blocks, out, block]
    return ((blocks @ grams) * blocks).sum(-1).T


def search_clip(
    weight: Tensor,
    product: InputProduct,
    spec: QuantSpec,
    min_clip_ratio: float = 0.5,
    shrink_step: float = 0.05,
    amax_dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return the state of `spec` whose clipped ranges give the least output error (ties: the tighter range).

    With calibrated block scales, each block is searched alone. Where only a range of the whole tensor is calibrated
    (dynamic block scales under a global one, or one scale per tensor), that range is, by the output's whole error.

    Args:
        weight: [out, in], any float dtype.
        product: XᵀX of the (already scaled) inputs. ModelOpt looks at some 64 tokens of each batch.
        spec: Format of the weight, not stacked.
        min_clip_ratio: Smallest part of the largest magnitude that is tried.
        shrink_step: Distance between the parts that are tried.
        amax_dtype: To which tried ranges are rounded. ModelOpt's are in the weight's dtype in `awq_clip` alone, and in
            fp32 after `awq_lite`.

    Raises:
        UnsupportedError: the format has one scale per channel, or blocks that are not along rows.
    """
    state = amax_state(weight, spec)
    state = {name: state[name] for name in spec.state}
    searched = "amax" if "amax" in state else "global_amax"

    def clipped(rows: Tensor, largest: Tensor, errors: Callable[[Tensor], Tensor]) -> Tensor:
        best, least = largest, torch.full_like(largest, torch.inf)
        for ratio in clip_ratios(min_clip_ratio, shrink_step):
            amax = (largest * ratio).to(amax_dtype).float()
            rounded = fake_quantize(rows, [*{**state, searched: amax}.values()], spec)
            error = errors(rounded.float().sub_(rows))
            best = torch.where(error < least, amax, best)
            least = torch.minimum(error, least)
        return best

    largest = state[searched]
    if largest.dim() == 0:
        return {**state, searched: clipped(weight, largest, lambda change: product.errors(change).sum())}
    grams = product.blocks(_searched_length(spec))
    found = torch.empty_like(largest)
    for rows, amax, best in pieces([weight, largest, found], whole=(1,)):
        best.copy_(clipped(rows, amax, lambda change: block_errors(change, grams)))
    return {**state, searched: found}


def _searched_length(spec: QuantSpec) -> int:
    """Return how many neighbours in a row have a range that is searched alone."""
    length = block_length(spec)
    if length is None or len(getattr(spec.granularity, "sizes", ())) > 1:
        raise UnsupportedError(
            f"awq_clip searches blocks along a row or one range per tensor, found {spec}; "
            "use a format with block_sizes {-1: n}, or the algorithm 'mse'"
        )
    return length
