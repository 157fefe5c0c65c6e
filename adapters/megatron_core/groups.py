"""Process groups: which ranks see parts of what a quantizer of a Megatron-core layer sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from octavo.adapters.megatron_core.layers import QuantParallelLinear
from octavo.adapters.megatron_core.sharded_state import seen_dim, tensor_group
from octavo.core.model.rank_groups import RankGroups
from octavo.core.modules import QuantAttention, quantized_layers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

EXPERTS = ".experts."  # in the names of layers of one expert
_HEADS = -3  # of queries, keys and values [batch, heads, tokens, head_dim]


def rank_groups_of(model: nn.Module) -> dict[str, RankGroups]:
    """Return, by quantizer name, which ranks see parts of the same tensor; of one process nothing."""
    found: dict[str, RankGroups] = {}
    for layer_name, layer in quantized_layers(model):
        for quantizer in layer.quantizers():
            groups = _groups(layer, quantizer, is_expert=EXPERTS in layer_name)
            if groups != RankGroups():
                found[f"{layer_name}.{quantizer}"] = groups
    return found


def data_groups(is_expert: bool) -> tuple[ProcessGroup, ...]:
    """Return the group of ranks that run the same layers for other samples (context parallelism included), if any do.

    The ranks that share the experts of a model hand every token to the expert it was routed to, so that only ranks
    with the same experts see other samples.
    """
    from megatron.core import parallel_state

    if is_expert:
        group = parallel_state.get_expert_data_parallel_group()
    else:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return _if_shared(group)


def expert_groups(is_expert: bool) -> tuple[ProcessGroup, ...]:
    """Return the group of ranks that have other experts than a layer's own, if it is an expert's and any have."""
    from megatron.core import parallel_state

    if not is_expert:
        return ()
    return _if_shared(parallel_state.get_expert_model_parallel_group())


def _groups(layer: nn.Module, quantizer: str, is_expert: bool) -> RankGroups:
    tp = _if_shared(tensor_group(layer))
    if isinstance(layer, QuantAttention):
        return RankGroups(data_groups(is_expert), tuple((group, _HEADS) for group in tp), num_dims=4)
    if not isinstance(layer, QuantParallelLinear):
        return RankGroups()
    dim = seen_dim(layer, quantizer)
    parts = () if dim is None else tuple((group, dim) for group in tp)
    if quantizer == "weight_quantizer":
        return RankGroups(parts=parts, rows=layer.row_segments)
    return RankGroups(data_groups(is_expert), parts, expert_groups(is_expert))


def _if_shared(group: Any) -> tuple[ProcessGroup, ...]:
    return () if group is None or group.size() == 1 else (group,)
