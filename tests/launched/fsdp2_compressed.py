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

from helpers.adapted_models import TOKENS, adapt, adapters, compressed, packed_parameters
from launched.common import ARGUMENTS, joined, of_all_ranks, report
from octavo.core.errors import OctavoError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def sharded(model: nn.Module, policy: MixedPrecisionPolicy) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def trained(model: nn.Module, tokens: Tensor, steps: int = 2) -> list[float]:
    """Train the adapters and return the loss before each step, over all ranks' tokens."""
    optimizer = torch.optim.SGD([parameter for _, parameter in adapters(model)], lr=0.1)
    losses = []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def outside_forward(model: nn.Module) -> dict[str, Any]:
    """Return what the weight of a layer shows while its codes are sharded."""
    weight = model.model.layers[0].mlp.gate_proj.weight
    try:
        weight.dequantize()
    except OctavoError as error:
        return {"shape": list(weight.shape), "dtype": str(weight.dtype), "error": str(error)}
    return {"error": "none"}


def outcome(preset: str) -> dict[str, Any]:
    base = compressed(preset)
    single, model = adapt(copy.deepcopy(base)), adapt(base)
    before = {name: tensor.clone() for name, tensor in single.state_dict().items()}
    with torch.no_grad():
        expected_logits = single(TOKENS).logits
    expected = trained(single, TOKENS)

    sharded(model, MixedPrecisionPolicy())
    with torch.no_grad():
        logits = model(TOKENS).logits
    whole = sum(parameter.nbytes for parameter in packed_parameters(single).values())
    mine = sum(parameter.to_local().nbytes for parameter in packed_parameters(model).values())
    losses = trained(model, TOKENS[dist.get_rank() : dist.get_rank() + 1])
    after, wanted = get_model_state_dict(model, options=WHOLE), single.state_dict()
    set_model_state_dict(
        model,
        dict(before) if dist.get_rank() == 0 else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )
    with torch.no_grad():
        reloaded = model(TOKENS).logits
    rounded, full = bfloat16_outputs(preset)
    return {
        "logits": torch.equal(logits, expected_logits),
        "expected losses": expected,
        "losses": [sum(both) / 2 for both in zip(*of_all_ranks(losses), strict=True)],
        "share": of_all_ranks(mine / whole),
        "names": sorted(after) == sorted(wanted) if dist.get_rank() == 0 else None,
        "unchanged": [
            name for name in after if "packed" in name and not torch.equal(after[name], before[name])
        ],
        "adapters": max(
            ((after[name] - parameter).abs().max() / parameter.abs().max()).item()
            for name, parameter in adapters(single)
            if name in after
        )
        if after
        else None,
        "moved": [
            name for name, _ in adapters(single) if name in after and torch.equal(after[name], before[name])
        ],
        "reloaded": torch.equal(reloaded, expected_logits),
        "mixed precision": torch.equal(rounded, full),
        "outside": outside_forward(model),
    }


def bfloat16_outputs(preset: str) -> tuple[Tensor, Tensor]:
    """Return the first packed layer's values under FSDP2's mixed precision, and without FSDP2."""
    model = compressed(preset)
    layer = model.model.layers[0].mlp.gate_proj
    values = layer.weight.dequantize()
    sharded(model, MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight.dequantize()))
    with torch.no_grad():
        model(TOKENS)
    return seen[0], values


with joined():
    report(**{preset: outcome(preset) for preset in ARGUMENTS})
