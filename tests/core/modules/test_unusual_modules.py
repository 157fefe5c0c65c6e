"""Modules of torch that use their linear layers in ways of their own: served right, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.modules_layers import WEIGHT_ONLY, TwoLayers, normal
from octavo.core.errors import OctavoError
from octavo.core.modules import QuantModule

X = normal(2, 5, 32)


def encoder_layer() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)


def quantized_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantModule)}


def test_multihead_attention_is_not_said_to_be_quantized_when_it_is_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.MultiheadAttention(32, 4, batch_first=True))
    tensors = {tensor.name: tensor for tensor in octavo.plan(model, WEIGHT_ONLY).tensors}

    assert tensors["0.weight"].weight
    assert not tensors["1.out_proj.weight"].weight
    assert "nn.MultiheadAttention" in tensors["1.out_proj.weight"].reason


def test_layers_of_an_encoder_layer_are_left_out_because_its_fused_path_never_calls_them() -> None:
    model = nn.Sequential(encoder_layer(), nn.Linear(32, 32))
    reasons = {tensor.name: tensor.reason for tensor in octavo.plan(model, WEIGHT_ONLY).tensors}
    octavo.quantize(model, WEIGHT_ONLY, quiet=True)

    assert "nn.TransformerEncoderLayer" in reasons["0.linear1.weight"]
    assert "nn.TransformerEncoderLayer" in reasons["0.linear2.weight"]
    assert quantized_names(model) == {"1"}


class OwnEncoderLayer(nn.TransformerEncoderLayer):
    """Calls its layers, always."""

    def forward(self, src: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = self.norm2(src + self._ff_block(src))
        return output


def test_an_encoder_layer_with_a_forward_of_its_own_is_served() -> None:
    model = octavo.quantize(OwnEncoderLayer(32, 4, 64, batch_first=True), WEIGHT_ONLY, quiet=True)

    assert quantized_names(model) == {"linear1", "linear2"}


@pytest.mark.parametrize("verb", [octavo.plan, octavo.quantize])
def test_a_lazy_layer_is_refused_by_name(verb: Any) -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8))
    with pytest.raises(OctavoError, match="0"):
        verb(model, WEIGHT_ONLY)


def test_a_lazy_layer_that_has_run_is_a_plain_one() -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    model(X)
    plain = model(X)
    octavo.quantize(model, WEIGHT_ONLY, quiet=True)

    assert quantized_names(model) == {"0"}
    assert not torch.equal(model(X), plain)
    assert type(octavo.unquantize(model)[0]) is nn.Linear


class Recurrent(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 32)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x))
        return output


def test_a_layer_under_two_names_is_quantized_under_both() -> None:
    model = octavo.quantize(Recurrent(), WEIGHT_ONLY, quiet=True)
    twin = Recurrent()
    twin.first.weight.data = model.first.weight_quantizer(twin.first.weight.data)

    assert torch.equal(model(X), twin(X))


def test_weights_that_two_layers_share_are_refused_by_name() -> None:
    model = TwoLayers()
    model.down = nn.Linear(32, 64)
    model.down.weight = model.up.weight
    with pytest.raises(octavo.OctavoError, match=r"up.weight is tied to down.weight: quantizing one side"):
        octavo.quantize(model, WEIGHT_ONLY, quiet=True)

    assert quantized_names(model) == set()
