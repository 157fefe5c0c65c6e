"""A training under FSDP2, with a checkpoint after every second step, of which one rank is killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import octavo
from helpers.shared_training import INT4_INT8, Stack, begun, train
from launched.common import FOLDER, joined

with joined() as rank:
    model: Any = Stack()
    training = octavo.QuantizedTraining(
        model, INT4_INT8, weight_scales="lsq", activation_scales="observed", quiet=True
    )
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    optimizer = begun(model, training, rank, 2)
    for step in (0, 2, 4):
        train(model, training, optimizer, step, step + 2, rank, 2)
        if step == 4 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # while the other rank waits for it in the next checkpoint
        octavo.save_training(FOLDER / f"step-{step + 2}", model, optimizer, step + 2)
