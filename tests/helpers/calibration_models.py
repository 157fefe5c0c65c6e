"""Plain torch models that show one thing each, and what a model's quantizers hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.modules import tensor_quantizers

FP8: dict[str, Any] = {"num_bits": (4, 3), "axis": None}


class Branches(nn.Module):
    """Two layers of which the second runs only when asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(32, 32)
        self.rarely = nn.Linear(32, 32)

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        y: Tensor = self.always(x)
        return self.rarely(y) if both else y


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16))


def rows(seed: int = 0, count: int = 4, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def quantizer_config(**cfgs: dict[str, Any]) -> dict[str, Any]:
    """A config whose keyword names are quantizers (`weight_quantizer`, …), all others off."""
    entries = [{"quantizer_name": f"*{name}", "cfg": cfg} for name, cfg in cfgs.items()]
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries], "algorithm": "max"}


def calibrated_state(model: nn.Module) -> dict[str, list[Any]]:
    """Every quantizer's calibrated tensors as numbers, by name."""
    return {
        f"{name}.{key}": tensor.flatten().tolist()
        for name, quantizer in tensor_quantizers(model)
        for key, tensor in quantizer.named_state().items()
    }
