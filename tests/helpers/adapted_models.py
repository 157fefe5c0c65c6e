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

CONFIGS = {
    "NVFP4": octavo.W4A16_NVFP4_CFG,
    "INT8": octavo.INT8_DEFAULT_CFG,
    # Two formats of the weights in turn, and factors on inputs.
    "W4A8": {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*weight_quantizer",
                "cfg": [{"num_bits": 4, "block_sizes": {-1: 32}}, {"num_bits": (4, 3)}],
            },
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": (4, 3)}},
            {"quantizer_name": "*embed_tokens*", "enable": False},
            {"quantizer_name": "*lm_head*", "enable": False},
        ],
        "algorithm": "awq_lite",
    },
}


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


def compressed(config: str) -> nn.Module:
    """Return the bundled model quantized by one of `CONFIGS` and compressed, in the numbers of the simulation."""
    model = octavo.quantize(stories(), CONFIGS[config], [TOKENS], quiet=True)
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


def trained(model: nn.Module, tokens: Tensor, steps: int = 2) -> list[float]:
    """Train the adapters and return the loss before each step."""
    optimizer = torch.optim.SGD([parameter for _, parameter in adapters(model)], lr=0.1)
    losses = []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: nn.Module) -> Tensor:
    """Return what the model says to `TOKENS`."""
    with torch.no_grad():
        result: Tensor = model(TOKENS).logits
    return result
