"""AWQ's clipping of weight ranges (arXiv:2306.00978), by ModelOpt 0.47's rules: each block by its own output error."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.awq import block_length
from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.errors import UnsupportedError
from octavo.core.formats import QuantSpec, fake_quantize


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
    grams = _grams(product, spec, state[searched])
    largest = state[searched]
    best, least = largest, torch.full_like(largest, torch.inf)
    for ratio in clip_ratios(min_clip_ratio, shrink_step):
        amax = (largest * ratio).to(amax_dtype).float()
        rounded = fake_quantize(weight, [*{**state, searched: amax}.values()], spec)
        change = rounded.float() - weight.float()
        error = product.errors(change).sum() if grams is None else block_errors(change, grams)
        best = torch.where(error < least, amax, best)
        least = torch.minimum(error, least)
    return {**state, searched: best}


def _grams(product: InputProduct, spec: QuantSpec, searched: Tensor) -> Tensor | None:
    """Return the Gram matrix of each block, or None where the searched range is that of the whole tensor."""
    if searched.dim() == 0:
        return None
    block = block_length(spec)
    if block is None or len(getattr(spec.granularity, "sizes", ())) > 1:
        raise UnsupportedError(
            f"awq_clip searches blocks along a row or one range per tensor, found {spec}; "
            "use a format with block_sizes {-1: n}, or the algorithm 'mse'"
        )
    return product.blocks(block)
