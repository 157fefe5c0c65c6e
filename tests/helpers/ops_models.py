"""A quantized network whose every other operation is exact, so that compilers cannot change its bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import octavo
from helpers.ops_cases import normal

PRESETS = ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "MXFP4_DEFAULT_CFG"]
# An INT4 value stored as FP8, in a chain; a dynamic input; an output.
CHAINED = {
    "quant_cfg": [
        {
            "quantizer_name": "*weight_quantizer",
            "cfg": [{"num_bits": 4, "block_sizes": {-1: 16}}, {"num_bits": (4, 3)}],
        },
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": (4, 3), "type": "dynamic"}},
        {"quantizer_name": "*output_quantizer", "cfg": {"num_bits": 8}},
    ],
    "algorithm": "max",
}
CONFIGS = {**{name: getattr(octavo, name) for name in PRESETS}, "chained": CHAINED}


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.up(x).relu()
        return x + self.down(hidden)


def quantized_feed_forward(config: str) -> nn.Module:
    data = [normal(4, 5, 64, seed=3)]
    return octavo.quantize(FeedForward(), CONFIGS[config], data, quiet=True)


def forward_and_backward(model: nn.Module, compiled: nn.Module, x: Tensor) -> list[Tensor]:
    """Return output and gradients of input and parameters, of `compiled` over the parameters of `model`."""
    leaf = x.clone().requires_grad_()
    output = compiled(leaf)
    return [output, *torch.autograd.grad(output.square().sum(), [leaf, *model.parameters()])]
