"""The bundled model compressed, with low-rank adapters over its packed weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

import octavo
from conftest import ROOT

STORIES = ROOT / "examples" / "data" / "stories260k"
ADAPTED = ("q_proj", "up_proj", "down_proj")
TOKENS = torch.arange(1, 65).reshape(2, 32)
"""Two sequences: one for each of two ranks, or both in one process."""


class Adapted(nn.Module):
    """A frozen layer and what a trained product of low rank adds to its output."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(base.in_features)
        down = torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def stories() -> nn.Module:
    """Return the bundled model, fp32, not trainable."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def compressed(preset: str) -> nn.Module:
    """Return the bundled model quantized by a preset and compressed, in the numbers of the simulation."""
    model = octavo.quantize(stories(), getattr(octavo, preset), [TOKENS], quiet=True)
    return octavo.compress(model, dialect="neutral", quiet=True)


def adapt(model: nn.Module) -> nn.Module:
    """Put adapters around the layers `ADAPTED`, in place."""
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name in ADAPTED:
                if name in parent._modules:
                    setattr(parent, name, Adapted(getattr(parent, name)))
    return model


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that are trained, with their names."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def packed_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return codes and scales by name."""
    return {name: one for name, one in model.named_parameters() if "weight_packed." in name}
