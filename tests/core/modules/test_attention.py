"""QuantAttention: a mixin over the framework's own attention class, whose forward stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from helpers.modules_layers import normal
from octavo.core.formats import QuantSpec
from octavo.core.modules import (
    QuantAttention,
    QuantModule,
    combined_class,
    quantized_class,
    swap,
    unswap,
)
from octavo.core.quantizers import TensorQuantizer


class Attention(nn.Module):
    """As a framework's: its forward ends in a function that the adapter makes call `quantize_qkv`."""

    head_dim = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 4, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        if isinstance(self, QuantAttention):
            query, key, value = self.quantize_qkv(query, key, value)
        return scaled_dot_product_attention(query, key, value)


X = normal(2, 5, 32)
NAMES = ("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")


def with_scales(*amax: float | None) -> Any:
    layer, quantizers = Attention(), {}
    for name, value in zip(NAMES, amax, strict=True):
        quantizers[name] = TensorQuantizer(QuantSpec("e4m3")) if value else TensorQuantizer()
        if value:
            quantizers[name].set_state(amax=torch.tensor(value))
    swap("attention", layer, combined_class(QuantAttention, Attention), quantizers)
    return layer


def test_the_class_keeps_the_frameworks_forward() -> None:
    layer = with_scales(None, None, None)

    assert type(layer).__name__ == "QuantAttention"
    assert type(layer).__bases__ == (QuantAttention, Attention)
    assert type(layer).forward is Attention.forward
    assert type(layer).__module__ == Attention.__module__
    assert combined_class(QuantAttention, Attention) is type(layer)
    assert torch.equal(layer(X), Attention()(X))
    unswap("attention", layer)
    assert type(layer) is Attention


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_of_the_three_has_its_own_quantizer(index: int) -> None:
    amax: list[float | None] = [None, None, None]
    amax[index] = 1.0
    layer = with_scales(*amax)
    tensors = [normal(2, 4, 5, 8, seed=seed) for seed in range(3)]

    found = layer.quantize_qkv(*tensors)

    tensors[index] = layer.quantizers()[NAMES[index]](tensors[index])
    assert all(map(torch.equal, found, tensors))
    assert not torch.equal(layer(X), Attention()(X))


def test_shapes_that_the_plan_asks_for() -> None:
    class Headless(nn.Module):
        pass

    assert [QuantAttention.quantizer_shape(Attention(), name) for name in NAMES] == [(0, 0, 0, 8)] * 3
    assert QuantAttention.quantizer_shape(Headless(), NAMES[0]) is None


def test_state_names_and_weights() -> None:
    layer = with_scales(None, 1.0, 2.0)
    added = layer.state_dict().keys() - Attention().state_dict().keys()

    assert added == {f"{name}.{part}" for name in NAMES[1:] for part in ("amax", "calibrated")}
    assert layer.quantized_weights() == {}
    assert tuple(layer.quantizers()) == NAMES


def test_attention_is_not_served_without_an_adapter() -> None:
    assert quantized_class(Attention) is None
    assert isinstance(with_scales(None, None, None), QuantModule)
