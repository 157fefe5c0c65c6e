"""A compressed model under DeepSpeed's ZeRO-3: adapters train past frozen packed weights, saved and loaded."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed

import octavo
from helpers.adapted_models import TOKENS, adapt, adapters, compressed, logits, packed_parameters, trained
from launched.common import ARGUMENTS, FOLDER, joined, of_all_ranks, refusal, report

deepspeed.utils.logger.setLevel(logging.ERROR)
# Each would be compiled for minutes at its first use: a shared-memory transport, which gloo needs none of.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def settings(bfloat16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 30,
    }


def started(model: nn.Module, bfloat16: bool = False) -> Any:
    optimizer = torch.optim.SGD([parameter for _, parameter in adapters(model)], lr=0.1)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings(bfloat16))[0]


def trained_by(engine: Any, steps: int = 2) -> list[float]:
    tokens, losses = TOKENS[dist.get_rank() : dist.get_rank() + 1], []
    for _ in range(steps):
        loss = engine(tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def outside_forward(model: nn.Module) -> dict[str, Any]:
    """Return what the weight of a layer shows while its codes are elsewhere and once gathered, and what is refused."""
    layer = model.model.layers[0].mlp.gate_proj
    found = {
        "shape": list(layer.weight.shape),
        "error": refusal(lambda: layer.weight.dequantize()),
        "decompress": refusal(lambda: octavo.decompress(model)),
        "save": refusal(lambda: octavo.save(model, FOLDER / f"saved-{dist.get_rank()}")),
    }
    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        return {**found, "gathered": layer.weight.dequantize().double().sum().item()}


def outcome(config: str) -> dict[str, Any]:
    base = compressed(config)
    single, model = adapt(copy.deepcopy(base)), adapt(copy.deepcopy(base))
    packed = {name: one.detach().clone() for name, one in packed_parameters(single).items()}
    expected_logits, expected = logits(single), trained(single, TOKENS)
    values = single.model.layers[0].mlp.gate_proj.weight.dequantize().double().sum().item()

    engine = started(model)
    same_logits = torch.equal(logits(engine), expected_logits)
    losses = trained_by(engine)
    share = sum(one.ds_tensor.nbytes for one in packed_parameters(model).values())
    after = logits(engine)
    engine.save_checkpoint(str(FOLDER / config), tag="last")
    state = engine._zero3_consolidated_16bit_state_dict()
    fresh = started(adapt(copy.deepcopy(base)))
    fresh.load_checkpoint(str(FOLDER / config), tag="last")
    return {
        "logits": same_logits,
        "expected losses": expected,
        "losses": [sum(both) / 2 for both in zip(*of_all_ranks(losses), strict=True)],
        "share": of_all_ranks(share / sum(one.nbytes for one in packed.values())),
        "outside": outside_forward(model),
        "values": values,
        "changed": [name for name, one in packed.items() if state and not torch.equal(state[name], one)],
        "reloaded": torch.equal(logits(fresh), after),
    }


def in_bfloat16(config: str) -> dict[str, Any]:
    """Return what a layer's weight is in a forward of a bfloat16 engine over a model of fp32, and the losses."""
    model = adapt(compressed(config))
    layer = model.model.layers[0].mlp.gate_proj
    values = layer.weight.dequantize()
    engine = started(model, bfloat16=True)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.dequantize()))
    losses = trained_by(engine, 3)
    return {"same": torch.equal(values, seen[0]), "losses": losses}


with joined():
    deepspeed.init_distributed(dist_backend="gloo")
    report(**{config: {**outcome(config), "bfloat16": in_bfloat16(config)} for config in ARGUMENTS})
