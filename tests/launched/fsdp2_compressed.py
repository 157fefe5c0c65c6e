"""A compressed model under FSDP2: adapters train past frozen packed weights as they do in one process."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import octavo
from helpers.adapted_models import TOKENS, adapt, compressed, logits, packed_parameters, trained
from launched.common import ARGUMENTS, FOLDER, joined, of_all_ranks, refusal, report

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def sharded(model: nn.Module, policy: MixedPrecisionPolicy) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def outside_forward(model: nn.Module) -> dict[str, Any]:
    """Return what the weight of a layer shows while its codes are sharded, and what is refused."""
    weight = model.model.layers[0].mlp.gate_proj.weight
    return {
        "shape": list(weight.shape),
        "dtype": str(weight.dtype),
        "error": refusal(weight.dequantize),
        "decompress": refusal(lambda: octavo.decompress(model)),
        "save": refusal(lambda: octavo.save(model, FOLDER / f"saved-{dist.get_rank()}")),
    }


def outcome(config: str) -> dict[str, Any]:
    base = compressed(config)
    single, model = adapt(copy.deepcopy(base)), adapt(base)
    before = {name: tensor.clone() for name, tensor in single.state_dict().items()}
    expected_logits, expected = logits(single), trained(single, TOKENS)

    sharded(model, MixedPrecisionPolicy())
    same_logits = torch.equal(logits(model), expected_logits)
    losses = trained(model, TOKENS[dist.get_rank() : dist.get_rank() + 1])
    after = get_model_state_dict(model, options=WHOLE)
    loaded = dict(before) if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, loaded, options=options)
    return {
        "logits": same_logits,
        "expected losses": expected,
        "losses": [sum(both) / 2 for both in zip(*of_all_ranks(losses), strict=True)],
        "share": of_all_ranks(local_bytes(model) / local_bytes(single)),
        "reloaded": torch.equal(logits(model), expected_logits),
        "mixed precision": torch.equal(*values_in_mixed_precision(config)),
        "outside": outside_forward(model),
        **(compared(before, single.state_dict(), after) if dist.get_rank() == 0 else {}),
    }


def local_bytes(model: nn.Module) -> int:
    """Return the bytes of codes and scales that this rank holds."""
    parameters = packed_parameters(model).values()
    return sum(one.to_local().nbytes if hasattr(one, "to_local") else one.nbytes for one in parameters)


def compared(
    before: dict[str, Tensor], single: dict[str, Tensor], after: dict[str, Tensor]
) -> dict[str, Any]:
    """Hold the trained state dict of both ranks against that of one process, and that from before."""
    packed = [name for name in before if "weight_packed." in name]
    added = [name for name in before if name.endswith((".down", ".up"))]
    differences = [
        ((after[name] - single[name]).abs().max() / single[name].abs().max()).item() for name in added
    ]
    return {
        "names": bool(packed) and sorted(after) == sorted(single),
        "changed": [name for name in packed if not torch.equal(after[name], before[name])],
        "still": [name for name in added if torch.equal(after[name], before[name])],
        "adapters": max(differences),
    }


def values_in_mixed_precision(config: str) -> tuple[Tensor, Tensor]:
    """Return a packed layer's values in a forward under FSDP2's mixed precision, and without FSDP2."""
    model = compressed(config)
    layer = model.model.layers[0].mlp.gate_proj
    values = layer.weight.dequantize()
    sharded(model, MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight.dequantize()))
    with torch.no_grad():
        model(TOKENS)
    return seen[0], values


with joined():
    report(**{config: outcome(config) for config in ARGUMENTS})
