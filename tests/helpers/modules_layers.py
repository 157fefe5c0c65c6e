"""Layers swapped by hand, and networks to quantize whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.formats import PerChannel, QuantSpec, compute_amax
from octavo.core.modules import QuantModule, quantized_class, swap
from octavo.core.quantizers import Quantizer, TensorQuantizer

INT8 = QuantSpec("int8")
INT8_CHANNEL = QuantSpec("int8", PerChannel(0))
WEIGHT_ONLY: dict[str, Any] = {
    "quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}}],
    "algorithm": "max",
}
W8A8: dict[str, Any] = {
    "quant_cfg": [*WEIGHT_ONLY["quant_cfg"], {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}}],
    "algorithm": "max",
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.up(x).relu()
        output: Tensor = self.down(hidden)
        return output


def calibrated(spec: QuantSpec, x: Tensor) -> TensorQuantizer:
    quantizer = TensorQuantizer(spec, x.shape)
    if spec.state:
        known = {"amax": compute_amax(x.detach(), spec), "global_amax": x.detach().abs().max()}
        quantizer.set_state(**{name: known[name] for name in spec.state})
    return quantizer


def quantizers_for(layer: nn.Module) -> dict[str, Quantizer]:
    """Return INT8 quantizers for a linear layer: inputs up to 3, weight per channel, output off."""
    return {
        "input_quantizer": calibrated(INT8, torch.tensor([3.0])),
        "weight_quantizer": calibrated(INT8_CHANNEL, layer.weight),
        "output_quantizer": TensorQuantizer(),
    }


def swap_in(layer: nn.Module, quantizers: Mapping[str, Quantizer] | None = None, name: str = "layer") -> Any:
    """Swap the layer's class for its quantized class, and return the layer."""
    quantized: type[QuantModule] | None = quantized_class(type(layer))
    assert quantized is not None
    swap(name, layer, quantized, quantizers_for(layer) if quantizers is None else quantizers)
    return layer


def expected_output(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what `layer` computes with the quantizers of `quantizers_for`."""
    made = quantizers_for(layer)
    quantized_x, quantized_weight = (
        ops.fake_quantize(tensor, made[name].active_state(), made[name].active_key)
        for name, tensor in (("input_quantizer", x), ("weight_quantizer", layer.weight))
    )
    return torch.nn.functional.linear(quantized_x, quantized_weight, layer.bias)
