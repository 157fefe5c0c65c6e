"""Which dim of each of a quantizer's tensors the ranks share, and those tensors for distributed checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.model.rank_groups import follows
from octavo.core.quantizers import TensorQuantizer

if TYPE_CHECKING:
    from octavo.adapters.megatron_core.layers import QuantParallelLinear


def sharded_quantizers(
    layer: QuantParallelLinear, prefix: str, sharded_offsets: Any, metadata: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what a rank's `sharded_state_dict` says of the quantizers' tensors that ranks share.

    Rows of a gated layer are cut in two halves first, as Megatron-core does with the weight and the bias alone: a
    scale for each row would otherwise be loaded into other rows under another layout, without any error.
    """
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
    from megatron.core.transformer.utils import (
        ensure_metadata_has_dp_cp_group,
        make_sharded_tensors_for_checkpoint,
    )

    metadata = ensure_metadata_has_dp_cp_group(metadata)
    divided = {name: (tensor, dim) for name, tensor, dim in divided_tensors(layer)}
    found: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        {name: tensor for name, (tensor, _) in divided.items()},
        prefix,
        {name: dim for name, (_, dim) in divided.items()},
        sharded_offsets,
        tp_group=layer.ranks,
        dp_cp_group=metadata["dp_cp_group"],
    )
    if layer.is_gated:
        singles = metadata.get("singleton_local_shards", False)
        for name, (_, dim) in divided.items():
            if dim == 0 and layer.divided_dim == 0:
                found[prefix + name] = apply_swiglu_sharded_factory(
                    found[prefix + name], sharded_offsets, singles
                )
    return found


def tensor_group(layer: Any) -> Any:
    """Return the process group of the ranks that share a layer, None where it is not shared.

    Transformer Engine's experts communicate outside of their layers, whose own `tp_group` is None: Megatron-core keeps
    the group beside that.
    """
    return getattr(layer, "_tp_group", getattr(layer, "tp_group", None))


def divided_tensors(layer: QuantParallelLinear) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the quantizers' tensors of which a rank has a part: (name in the layer, tensor, divided dim)."""
    for quantizer_name, quantizer in layer.quantizers().items():
        for stage_name, stage in quantizer.named_modules():
            if isinstance(stage, TensorQuantizer):
                prefix = ".".join(filter(None, (quantizer_name, stage_name)))
                for name, tensor in stage.named_buffers(recurse=False):
                    dim = divided_dim(layer, quantizer_name, stage, name)
                    if dim is not None:
                        yield f"{prefix}.{name}", tensor, dim


def divided_dim(layer: QuantParallelLinear, quantizer: str, stage: TensorQuantizer, name: str) -> int | None:
    """Return the dim along which ranks share the tensor `name` of a stage of `quantizer`; None where all have all."""
    if name != "amax" or stage.spec is None:
        return factor_dim(layer.divided_dim, quantizer, name)
    dim = seen_dim(layer, quantizer)
    return None if dim is None else _scale_dim(stage.spec, dim)


def factor_dim(weight_dim: int, quantizer: str, name: str) -> int | None:
    """Return the dim along which ranks share a quantizer's factor; None where all have all of it.

    Args:
        weight_dim: The dim of the weight [out, in] that the ranks share.
        quantizer: Name of the quantizer.
        name: Name of the factor: `pre_quant_scale` [in], `low_rank_down` [rank, in] or `low_rank_up` [out, rank].
    """
    if quantizer == "output_quantizer":
        return None
    if weight_dim == 1:
        return {"pre_quant_scale": 0, "low_rank_down": 1}.get(name)
    return {"low_rank_up": 0}.get(name)


def seen_dim(layer: QuantParallelLinear, quantizer: str) -> int | None:
    """Return which dim, negative, of what a quantizer sees is divided among ranks; None where each sees all."""
    if quantizer == "weight_quantizer":
        return layer.divided_dim - 2
    if quantizer == "input_quantizer":
        return -1 if layer.divided_dim == 1 else None
    return -1 if layer.divided_dim == 0 and not getattr(layer, "gather_output", False) else None


def _scale_dim(spec: QuantSpec, dim: int) -> int | None:
    """Return which dim of an amax belongs to the dim `dim` of its tensor."""
    if not follows(spec, dim, 2):
        return None
    shape = spec.granularity.scale_shape((2, 3))
    return 0 if len(shape) == 1 else dim + 2
