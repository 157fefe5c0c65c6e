"""A training script of Megatron's style: calibrated and trained through its schedule, stopped and started again."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch import nn

import octavo
from helpers import megatron_cpu as megatron
from launched.common import FOLDER, of_all_ranks, refusal
from octavo.adapters.megatron_core import schedule_loop, with_modes_of

BATCHES = [megatron.batch(seed=seed) for seed in range(4)]


def model_provider(pre_process: bool = True, post_process: bool = True) -> nn.Module:
    return megatron.gpt(megatron.config(), tied=False)


def forward_step(data_iterator: Any, model: nn.Module) -> Any:
    return model(**next(data_iterator)), lambda output: (output.mean(), {"loss": output.mean().detach()})


def wrapped(model: nn.Module) -> DistributedDataParallel:
    return DistributedDataParallel(megatron.config(), DistributedDataParallelConfig(), model)


def sharded(model: nn.Module) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    content = {"dp_cp_group": group, "non_homogeneous_layers": True}
    return {"model": model.sharded_state_dict(metadata=content)}


def train(model: DistributedDataParallel, steps: int) -> list[float]:
    """Return the loss of each step, which the last stage knows."""
    losses = []
    for _ in range(steps):
        model.zero_grad_buffer()
        losses.append(sum(megatron.run_schedule(model, BATCHES, forward_only=False)))
        model.finish_grad_sync()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.main_grad
    return losses


def scales_of(model: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for n, b in model.named_buffers() if n.endswith("amax")]


def results() -> dict[str, Any]:
    megatron.lay_out(pp=2)
    folder = FOLDER / "iter_0000001"
    model = model_provider()
    ddp = wrapped(model)
    loop = schedule_loop(forward_step, BATCHES, 4, megatron.TOKENS, 2, ddp)
    octavo.quantize(model, octavo.FP8_DEFAULT_CFG, loop, quiet=True)
    scales = scales_of(model)
    before = train(ddp, 2)
    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save(sharded(model), str(folder))
    after = train(ddp, 2)

    megatron.lay_out(pp=2, seed=99)
    again = with_modes_of(model_provider, folder)(pre_process=True, post_process=False)
    loaded = dist_checkpointing.load(sharded(again), str(folder))
    again.load_state_dict(loaded["model"])
    same = [torch.equal(a, b) for a, b in zip(scales_of(again), scales, strict=True)]
    resumed = train(wrapped(again), 2)
    return {
        "losses": max(of_all_ranks(before)),
        "uninterrupted": max(of_all_ranks(after)),
        "resumed": max(of_all_ranks(resumed)),
        "scales": of_all_ranks([len(same), all(same)]),
        "plain": refusal(lambda: with_modes_of(model_provider, FOLDER / "none")()),
        "no_batches": refusal(lambda: schedule_loop(forward_step, BATCHES, 0, megatron.TOKENS, 2)),
    }
