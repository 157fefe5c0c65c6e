"""A small network trained by one process, and by several that share its batches and its weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import octavo
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.collector import StatisticsCollector
from octavo.core.calibration.statistics.input_statistics import SUMS
from octavo.core.quantizers import TensorQuantizer

INT4_INT8: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {
            "quantizer_name": "*weight_quantizer",
            "cfg": {"num_bits": 4, "block_sizes": {-1: 16}},
            "enable": True,
        },
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}, "enable": True},
    ],
    "algorithm": "mse",
}
PERCENTILE = {
    **INT4_INT8,
    "quant_cfg": [
        *INT4_INT8["quant_cfg"],
        {
            "quantizer_name": "*input_quantizer",
            "cfg": {"num_bits": 8, "axis": None, "calibrator": {"method": "percentile", "percentile": 95.0}},
            "enable": True,
        },
    ],
}
GPTQ = {**INT4_INT8, "algorithm": "gptq"}
BATCH = 8
CALIBRATION = range(900, 904)
"""Numbers of the batches that calibrate."""


def input_statistics(rank: int = 0, ranks: int = 1) -> StatisticsCollector:
    """Return what a rank's part of the calibration data shows of the first layer's input."""
    needs = Needs(channels=True, gram=True, held_tokens=6, block_amax=True)
    collector, unused = StatisticsCollector("first", needs), TensorQuantizer()
    for x in calibration(rank, ranks):
        collector.collect(unused, x)
    return collector


def described(collector: StatisticsCollector) -> dict[str, Any]:
    found = collector.statistics
    assert found is not None
    tensors = {name: getattr(found, name) for name in (*SUMS, "block_amax_counts")}
    tensors |= {"gram": found.gram(), "held": found.held.tokens()}
    lists = {name: tensor.double().flatten().tolist() for name, tensor in tensors.items()}
    return {**lists, "counts": [found.num_tokens, found.num_batches, found.held.seen]}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Two blocks and a head; its rows divide unevenly among four ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def batch(number: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Return a rank's part of a batch: inputs [n, 32], of different size, and what they should become [n, 10]."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, 32, generator=generator) * torch.linspace(0.5, 2, BATCH)[:, None]
    y = torch.tanh(x[:, :10]) + 0.1 * torch.randn(BATCH, 10, generator=generator)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    return x[rows], y[rows]


def calibration(rank: int = 0, ranks: int = 1) -> list[Tensor]:
    return [batch(number, rank, ranks)[0] for number in CALIBRATION]


def train(
    model: nn.Module,
    training: octavo.QuantizedTraining,
    optimizer: torch.optim.Optimizer,
    first: int,
    end: int,
    rank: int = 0,
    ranks: int = 1,
) -> list[float]:
    """Train in steps; return the loss of each, of all ranks."""
    losses = []
    for step in range(first, end):
        x, y = batch(step, rank, ranks)
        training.before_step(step)
        loss = (model(x) - y).square().mean()
        loss.backward()
        training.before_optimizer(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_step(step + 1)
        mean = loss.detach().double() / ranks
        if ranks > 1:
            dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def begun(
    model: nn.Module, training: octavo.QuantizedTraining, rank: int, ranks: int
) -> torch.optim.Optimizer:
    """Return an optimizer of a model whose quantizers a rank's part of the data has calibrated."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    training.check_optimizer(optimizer)
    training.begin(0, calibration(rank, ranks))
    return optimizer


def trained_alone(steps: int, **options: Any) -> tuple[list[float], nn.Module]:
    """Return the losses of one process, and its model with its quantizers on."""
    model = Stack()
    training = octavo.QuantizedTraining(model, INT4_INT8, quiet=True, **options)
    return train(model, training, begun(model, training, 0, 1), 0, steps), model
