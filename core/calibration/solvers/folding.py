"""Folding a pre_quant_scale into what produces the input, so that nothing is multiplied at run time.

A consumer computes with x · p and a weight whose columns were divided by p. Whoever produces x can yield x · p
instead: a norm by its weight, a linear layer by its rows. All of it is exact but for the rounding of dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.errors import ShapeError

# act(c · x) = c^degree · act(x) for all c > 0. Gates multiply: their up_proj counts as `linear`.
_DEGREES = {"linear": 1, "identity": 1, "relu": 1, "leaky_relu": 1, "relu2": 2, "relu_squared": 2}


def norm_scaled(weight: Tensor, pre_quant_scale: Tensor, added_one: bool = False) -> Tensor:
    """Return a norm's weight [in] (or bias, without `added_one`) that yields the input times `pre_quant_scale` [in].

    Args:
        weight: In any float dtype, which the result has.
        pre_quant_scale: Positive.
        added_one: The norm multiplies by 1 + weight, as Gemma's and Nemotron's do.
    """
    weight, scale = weight.float(), pre_quant_scale.float()
    scaled = (weight + 1) * scale - 1 if added_one else weight * scale
    return scaled.to(weight.dtype)


def rows_scaled(weight: Tensor, pre_quant_scale: Tensor, activation: str = "linear") -> Tensor | None:
    """Return a layer's weight [out, in] or bias [out] that yields the next input times `pre_quant_scale` [out].

    Lossless where every row has scales of its own.

    Args:
        weight: In any float dtype, which the result has.
        pre_quant_scale: Positive.
        activation: What stands between the layer and the next input, by its transformers name. `linear` for
            up_proj beside a gate, and for v_proj.

    Returns:
        None if the scale does not pass through the activation (SiLU, GELU).
    """
    degree = _DEGREES.get(activation)
    if degree is None:
        return None
    scale = pre_quant_scale.float().pow(1 / degree)
    return (weight.float() * (scale if weight.dim() == 1 else scale[:, None])).to(weight.dtype)


def columns_rescaled(weight: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return `weight` [out, in], divided before by the pre_quant_scale `old` [in], as divided by `new`."""
    if torch.equal(old, new):
        return weight
    return (weight.float() * old.float() / new.float()).to(weight.dtype)


def averaged(scales: Sequence[Tensor]) -> Tensor:
    """Return one pre_quant_scale [in] for layers that read one input, as ModelOpt: the mean, in the scales' dtype."""
    return torch.stack(list(scales)).mean(0)


def tied_to_heads(channels: Tensor, num_kv_heads: int, head_dim: int, largest: bool = False) -> Tensor:
    """Return a value for each channel of o_proj's input [heads · head_dim], equal where heads share a KV head.

    v_proj's rows feed every query head of their group, so that only such scales fold into them.

    Args:
        channels: [heads · head_dim]: finished scales, or magnitudes from which scales will be computed.
        num_kv_heads: KV heads.
        head_dim: Channels of a head.
        largest: Take the largest of the group, as for magnitudes that must not clip, instead of the mean, which is
            what ModelOpt takes of scales.

    Raises:
        ShapeError: the input is not a whole number of groups.
    """
    groups = _groups(channels, num_kv_heads, head_dim)
    tied = groups.amax(1, keepdim=True) if largest else groups.mean(1, keepdim=True)
    return tied.expand_as(groups).reshape(-1)


def value_rows(tied: Tensor, num_kv_heads: int, head_dim: int) -> Tensor:
    """Return, [num_kv_heads · head_dim], what v_proj's rows are multiplied with; `tied` as `tied_to_heads` returns.

    Raises:
        ShapeError: the input is not a whole number of groups, or query heads of a group have different scales.
    """
    groups = _groups(tied, num_kv_heads, head_dim)
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        raise ShapeError(
            f"query heads that share one of {num_kv_heads} KV heads have different scales, which v_proj's rows "
            "cannot take; tie them first (tied_to_heads)"
        )
    return groups[:, 0].reshape(-1)


def _groups(scale: Tensor, num_kv_heads: int, head_dim: int) -> Tensor:
    if scale.dim() != 1 or scale.numel() % (num_kv_heads * head_dim):
        raise ShapeError(
            f"scales of o_proj's input have shape {tuple(scale.shape)}, expected a multiple of "
            f"{num_kv_heads} KV heads · {head_dim}"
        )
    return scale.reshape(num_kv_heads, -1, head_dim)
