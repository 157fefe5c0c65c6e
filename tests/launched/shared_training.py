"""A model trained under FSDP2 and under DDP by the ranks that share its batches; calibrated, resumed and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import octavo
from helpers.shared_training import (
    GPTQ,
    INT4_INT8,
    PERCENTILE,
    Stack,
    begun,
    calibration,
    described,
    input_statistics,
    train,
)
from launched.common import ARGUMENTS, FOLDER, joined, of_all_ranks, refusal, report
from octavo.core.modules import tensor_quantizers
from octavo.core.ranks.statistics import merge_inputs
from octavo.core.training.finite import watch_loss

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
STEPS = 50
OPTIONS: dict[str, Any] = {"weight_scales": "lsq", "activation_scales": "observed"}


def sharded(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {"fsdp2": sharded, "ddp": DistributedDataParallel}


def made(
    wrap: Callable[[nn.Module], nn.Module], **options: Any
) -> tuple[nn.Module, octavo.QuantizedTraining]:
    model = Stack()
    training = octavo.QuantizedTraining(model, INT4_INT8, quiet=True, **options)
    return wrap(model), training


def losses(kind: str, options: dict[str, Any]) -> list[float]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, training = made(WRAPPERS[kind], **options)
    return train(model, training, begun(model, training, rank, ranks), 0, STEPS, rank, ranks)


def states(model: nn.Module) -> dict[str, list[float]]:
    return {
        name: next(iter(q.named_state().values())).flatten().tolist()
        for name, q in tensor_quantizers(model)
        if q.named_state()
    }


def calibrated(model: nn.Module, config: Any = INT4_INT8) -> nn.Module:
    return octavo.quantize(model, config, calibration(dist.get_rank(), dist.get_world_size()), quiet=True)


def merged_inputs() -> dict[str, Any]:
    collector = input_statistics(dist.get_rank(), dist.get_world_size())
    merge_inputs([collector])
    return described(collector)


def weights_by_gptq() -> dict[str, list[float]]:
    model = calibrated(DistributedDataParallel(Stack()), GPTQ)
    return {name: p.detach().flatten().tolist() for name, p in model.module.named_parameters()}


def shard_first() -> dict[str, Any]:
    """Quantize a model that FSDP2 has divided, and take the quantizers off again."""
    model = sharded(Stack())
    before = [type(module) for module in model.modules()]
    x = calibration()[0]
    plain = model(x).detach()
    calibrated(model)
    wrapped = [isinstance(module, FSDPModule) for module in (model, *model.blocks)]
    rounded = model(x).detach()
    found = states(model)
    octavo.unquantize(model)
    return {
        "states": found,
        "wrapped": all(wrapped),
        "rounds": not torch.equal(plain, rounded),
        "same classes": [type(module) for module in model.modules()] == before,
        "same output": torch.equal(model(x).detach(), plain),
    }


def resumed(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Go on from a checkpoint, and hold the end against that of a run that was not interrupted."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, training = made(WRAPPERS[kind], **options)
    optimizer = begun(model, training, rank, ranks)
    train(model, training, optimizer, 0, 3, rank, ranks)
    octavo.save_training(FOLDER / kind / "step-3", model, optimizer, 3)
    whole = train(model, training, optimizer, 3, 6, rank, ranks)

    other, again = made(WRAPPERS[kind], **options)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    step = octavo.load_training(str(octavo.last_training(FOLDER / kind)), other, optimizer)
    again.begin(step)
    return {
        "step": step,
        "losses": train(other, again, optimizer, step, 6, rank, ranks) == whole,
        "different": different(model, other),
        "exists": refusal(lambda: octavo.save_training(FOLDER / kind / "step-3", model, optimizer, 3)),
        "recipe": refusal(lambda: load_elsewhere(kind)),
        "plain": refusal(lambda: octavo.load_training(FOLDER / kind / "step-3", *plain(WRAPPERS[kind]))),
    }


def after_death(folder: Path) -> dict[str, Any]:
    """Go on from the last checkpoint of a run of which a rank was killed."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, training = made(sharded, **OPTIONS)
    whole = train(model, training, begun(model, training, rank, ranks), 0, 8, rank, ranks)
    other, again = made(sharded, **OPTIONS)
    optimizer = torch.optim.AdamW(other.parameters())
    step = octavo.load_training(str(octavo.last_training(folder)), other, optimizer)
    again.begin(step)
    losses = train(other, again, optimizer, step, 8, rank, ranks)
    return {"step": step, "losses": losses == whole[step:], "different": different(model, other)}


def load_elsewhere(kind: str) -> None:
    model, _ = made(WRAPPERS[kind], weight_scales="recomputed")
    octavo.load_training(FOLDER / kind / "step-3", model, torch.optim.AdamW(model.parameters()))


def plain(wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = wrap(Stack())
    return model, torch.optim.AdamW(model.parameters())


def different(model: nn.Module, other: nn.Module) -> list[str]:
    """Return the tensors of two models that differ in a bit, here or on another rank."""
    ours, theirs = model.state_dict(), other.state_dict()
    found = [name for name in ours if not torch.equal(here(ours[name]), here(theirs[name]))]
    return sorted({*found, *(ours.keys() ^ theirs.keys())})


def here(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def refusals() -> dict[str, str]:
    model = Stack()
    optimizer = torch.optim.AdamW(model.parameters())
    training = octavo.QuantizedTraining(model, INT4_INT8, quiet=True)
    divided = sharded(model)
    flat = Stack()
    first_version = octavo.QuantizedTraining(flat, INT4_INT8, quiet=True)
    FullyShardedDataParallel(flat, use_orig_params=True, device_id=torch.device("cpu"))
    return {
        "FSDP1": refusal(lambda: first_version.begin(0, calibration())),
        "optimizer": refusal(lambda: training.check_optimizer(optimizer)),
        "learned late": refusal(
            lambda: octavo.QuantizedTraining(sharded(Stack()), INT4_INT8, weight_scales="lsq", quiet=True)
        ),
        "learned late, DDP": refusal(
            lambda: octavo.QuantizedTraining(
                DistributedDataParallel(Stack()), INT4_INT8, activation_scales="lsq", quiet=True
            )
        ),
        "gptq": refusal(lambda: octavo.quantize(sharded(Stack()), GPTQ, calibration(), quiet=True)),
        "save": refusal(lambda: octavo.save(divided, FOLDER / f"saved-{dist.get_rank()}")),
    }


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.stack(x).square().mean()}


def not_finite() -> dict[str, str]:
    """Return what is said of a loss that is not finite, on every rank at once."""
    model = WithLoss()
    sharded(model.stack)
    watch_loss(model)
    model.train()
    found = {"input": refusal(lambda: model(torch.full((4, 32), torch.inf)))}
    with torch.no_grad():
        model.stack.head.bias.fill_(torch.nan)
    return found | {"weight": refusal(lambda: model(torch.ones(4, 32)))}


def exported() -> dict[str, Any]:
    """Export a divided model, and the same weights and scales from one process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Stack()
    training = octavo.QuantizedTraining(model, "FP8_DEFAULT_CFG", weight_scales="lsq", quiet=True)
    sharded(model)
    train(model, training, begun(model, training, rank, ranks), 0, 3, rank, ranks)
    training.end()
    tried = refusal(lambda: octavo.export_hf_checkpoint(model, export_dir=FOLDER / "file", quiet=True))
    told = octavo.export_hf_checkpoint(model, export_dir=FOLDER / "sharded", quiet=True)
    values = get_model_state_dict(model, options=WHOLE)
    if rank == 0:
        alone = octavo.quantize(Stack(), "FP8_DEFAULT_CFG", calibration(), quiet=True)
        alone.load_state_dict({name: tensor for name, tensor in values.items() if "amax_shift" not in name})
        octavo.export_hf_checkpoint(alone, export_dir=FOLDER / "alone", quiet=True)
    return {"tried": of_all_ranks(tried), "tensors": of_all_ranks(told.num_tensors)}


with joined():
    results: dict[str, Any] = {kind: losses(kind, OPTIONS) for kind in WRAPPERS}
    if ARGUMENTS:
        (FOLDER / "file").write_text("in the way of an export")
        dist.barrier()
        results |= {
            "shard first": shard_first(),
            "replicated": states(calibrated(DistributedDataParallel(Stack()), PERCENTILE)),
            "gptq": of_all_ranks(weights_by_gptq()),
            "inputs": of_all_ranks(merged_inputs()),
            "resumed": {kind: resumed(kind, OPTIONS) for kind in WRAPPERS},
            "refusals": refusals(),
            "not finite": not_finite(),
            "exported": exported(),
            "killed": after_death(Path(ARGUMENTS[0])),
        }
    report(**results)
