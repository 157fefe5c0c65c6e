"""A model trained under DeepSpeed's ZeRO-3 by two ranks that share its batches."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed

import octavo
from helpers.shared_training import INT4_INT8, Stack, batch, calibration
from launched.common import FOLDER, joined, of_all_ranks, refusal, report
from octavo.core.modules import tensor_quantizers

deepspeed.utils.logger.setLevel(logging.ERROR)
# Each would be compiled for minutes at its first use: a shared-memory transport, which gloo needs none of.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

STEPS = 50
SETTINGS = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
    "gradient_clipping": 0.0,
    "steps_per_print": 1 << 30,
}
OPTIONS: dict[str, Any] = {"weight_scales": "recomputed", "activation_scales": "observed", "quiet": True}


def started(model: nn.Module) -> Any:
    return deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=SETTINGS)[0]


def made_whole() -> tuple[Any, octavo.QuantizedTraining]:
    """Attach quantizers to a whole model, which is divided afterwards."""
    model = Stack()
    training = octavo.QuantizedTraining(model, INT4_INT8, **OPTIONS)
    return started(model), training


def made_divided() -> tuple[Any, octavo.QuantizedTraining]:
    """Attach quantizers to a model whose weights are divided from their making on."""
    with deepspeed.zero.Init(config_dict_or_path=SETTINGS):
        model = Stack()
    training = octavo.QuantizedTraining(model, INT4_INT8, **OPTIONS)
    return started(model), training


def train(engine: Any, training: octavo.QuantizedTraining, first: int, end: int) -> list[float]:
    losses = []
    for step in range(first, end):
        x, y = batch(step, dist.get_rank(), 2)
        training.before_step(step)
        loss = (engine(x) - y).square().mean()
        engine.backward(loss)
        training.before_optimizer(step)
        engine.step()
        training.after_step(step + 1)
        losses.append(sum(of_all_ranks(loss.double().item())) / 2)
    return losses


def states(model: nn.Module) -> dict[str, list[float]]:
    return {name: q.amax.flatten().tolist() for name, q in tensor_quantizers(model) if q.named_state()}


def resumed() -> dict[str, Any]:
    engine, training = made_divided()
    training.begin(0, calibration(dist.get_rank(), 2))
    train(engine, training, 0, 3)
    engine.save_checkpoint(str(FOLDER / "engine"), tag="three")
    whole = train(engine, training, 3, 6)
    other, again = made_divided()
    other.load_checkpoint(str(FOLDER / "engine"), tag="three")
    again.begin(3)
    return {
        "losses": train(other, again, 3, 6) == whole,
        "states": states(other.module) == states(engine.module),
        "foreign": refusal(
            lambda: octavo.save_training(
                FOLDER / "ours", engine.module, torch.optim.AdamW(engine.module.parameters()), 3
            )
        ),
    }


def exported(engine: Any, training: octavo.QuantizedTraining) -> list[int]:
    """Export a divided model, and the same weights and scales from one process."""
    model = engine.module
    training.end()
    octavo.set_quantizer_by_cfg(model, [{"quantizer_name": "*input_quantizer", "enable": False}])
    told = exporter().export(model, FOLDER / "sharded", quiet=True)
    values = engine._zero3_consolidated_16bit_state_dict()
    if dist.get_rank() == 0:
        alone = octavo.quantize(Stack(), INT4_INT8, calibration(), quiet=True)
        octavo.set_quantizer_by_cfg(alone, [{"quantizer_name": "*input_quantizer", "enable": False}])
        alone.load_state_dict(values)
        exporter().export(alone, FOLDER / "alone", quiet=True)
    return of_all_ranks(told.num_tensors)


def exporter() -> Any:
    return octavo.plugins().exporter("compressed_tensors")


def refusals() -> dict[str, str]:
    with deepspeed.zero.Init(config_dict_or_path=SETTINGS):
        divided = Stack()
    gptq = {**copy.deepcopy(INT4_INT8), "algorithm": "gptq"}
    learned = Stack()
    late = octavo.QuantizedTraining(learned, INT4_INT8, weight_scales="lsq", quiet=True)
    started(learned)
    return {
        "gptq": refusal(lambda: octavo.quantize(divided, gptq, calibration(), quiet=True)),
        "learned": refusal(
            lambda: octavo.QuantizedTraining(divided, INT4_INT8, weight_scales="lsq", quiet=True)
        ),
        "learned late": refusal(lambda: late.begin(0, calibration())),
    }


def not_gathered() -> str:
    """Return what reading a weight that nobody gathered says."""
    from octavo.core.calibration.calibration import Calibration
    from octavo.core.calibration.originals import Originals

    engine, training = made_whole()
    training.begin(0, calibration(dist.get_rank(), 2))
    problem = next(iter(Calibration(engine.module, (), {}, Originals()).problems()))
    return refusal(problem.parameter)


with joined():
    deepspeed.init_distributed(dist_backend="gloo")
    engine, training = made_divided()
    training.begin(0, calibration(dist.get_rank(), 2))
    calibrated = states(engine.module)
    held = [parameter.numel() for parameter in engine.module.parameters()]
    report(
        states=calibrated,
        held=held,
        losses=train(engine, training, 0, STEPS),
        tensors=exported(engine, training),
        resumed=resumed(),
        refusals=refusals(),
        not_gathered=not_gathered(),
    )
