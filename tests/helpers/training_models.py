"""A small network to train in a plain loop, and the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import octavo

WEIGHTS = {"num_bits": 4, "block_sizes": {-1: 16}}
INPUTS = {"num_bits": 8, "axis": None}
INT4_G16: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": WEIGHTS, "enable": True},
        {"quantizer_name": "*input_quantizer", "parent_class": "nn.Linear", "cfg": INPUTS, "enable": True},
    ],
    "algorithm": "max",
}


class Net(nn.Module):
    """Three linear layers with a batch norm; returns outputs by name, with a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = torch.relu(self.norm(self.first(x)))
        output = self.last(torch.relu(self.second(hidden)))
        return {"output": output} | ({} if labels is None else {"loss": (output - labels).square().mean()})


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {
        "x": torch.randn(24, 32, generator=generator),
        "labels": torch.randn(24, 16, generator=generator),
    }


class Loop:
    """Trains a network in steps; can stop and go on elsewhere."""

    def __init__(self, config: Any = INT4_G16, **options: Any) -> None:
        self.model = Net()
        self.training = octavo.QuantizedTraining(self.model, config, quiet=True, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def begin(self) -> Loop:
        self.training.begin(0, [{"x": batch(step)["x"]} for step in range(2)])
        return self

    def resume(self, saved: dict[str, Any], step: int) -> Loop:
        self.model.load_state_dict(saved["model"], strict=False)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.training.begin(step)
        return self

    def run(self, first: int, end: int) -> Loop:
        self.model.train()
        for step in range(first, end):
            self.training.before_step(step)
            self.model(**batch(step))["loss"].backward()
            self.training.before_optimizer(step)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.training.after_step(step + 1)
        return self

    def saved(self) -> dict[str, Any]:
        return {
            "model": {name: tensor.clone() for name, tensor in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
        }
