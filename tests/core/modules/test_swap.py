"""Swapping a layer's class and back: everything else on the layer stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from helpers.modules_layers import expected_output, normal, quantizers_for, swap_in
from octavo.core.errors import ModeError
from octavo.core.modules import (
    QuantModule,
    original_class,
    quantized_class,
    quantized_layers,
    swap,
    tensor_quantizers,
    unswap,
)
from octavo.core.quantizers import TensorQuantizer

X = normal(4, 8)


def decorated() -> nn.Linear:
    """A layer with everything that other code may have put on it."""
    layer = nn.Linear(8, 8)
    layer.register_buffer("steps", torch.tensor(3))
    layer.register_buffer("scratch", torch.tensor(4), persistent=False)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    layer.register_state_dict_post_hook(lambda *arguments: None)
    layer.adapter = nn.Linear(8, 2)
    layer.note = {"from": "somebody"}
    layer.bias.requires_grad_(False)
    return layer.eval()


def snapshot(layer: nn.Module) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(layer).items()}


def test_unswap_gives_back_the_very_class_and_equal_vars() -> None:
    layer = decorated()
    before, order = snapshot(layer), list(layer.state_dict())
    swap_in(layer)
    assert isinstance(layer, QuantModule)

    unswap("layer", layer)

    assert type(layer) is nn.Linear
    assert snapshot(layer) == before
    assert list(vars(layer)) == list(before)
    assert list(layer.state_dict()) == order


def test_parameters_buffers_hooks_and_attributes_stay() -> None:
    layer = decorated()
    before = snapshot(layer)
    swap_in(layer)
    after = snapshot(layer)

    new = {name: after["_modules"].pop(name) for name in quantizers_for(layer)}
    assert all(isinstance(quantizer, TensorQuantizer) for quantizer in new.values())
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() == {"_octavo_original_class", "_octavo_quantized_class"}
    assert original_class(layer) is nn.Linear


def test_hooks_run_around_the_quantized_forward() -> None:
    layer = decorated()
    expected = expected_output(layer, X * 2) + 1

    assert torch.equal(swap_in(layer)(X), expected)


def test_state_dict_keys_are_the_layers_own_and_the_quantizers() -> None:
    layer = nn.Linear(8, 8)
    own = list(layer.state_dict())
    swap_in(layer)

    assert list(layer.state_dict()) == [
        *own,
        *(f"{name}_quantizer.{part}" for name in ("input", "weight") for part in ("amax", "calibrated")),
    ]


def test_optimizers_and_tied_weights_keep_their_parameter() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    optimizer = torch.optim.SGD([*first.parameters(), second.bias], lr=0.1)
    swap_in(first)
    before = first.weight.detach().clone()
    first(X).sum().backward()
    optimizer.step()

    assert second.weight is first.weight
    assert not torch.equal(first.weight, before)


def test_a_module_under_two_names_is_one_layer() -> None:
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"first": layer, "second": layer})
    expected = expected_output(layer, X)
    swap_in(layer)

    assert [name for name, _ in quantized_layers(model)] == ["first"]
    assert torch.equal(model["second"](X), expected)
    assert [name for name, _ in tensor_quantizers(model)] == [
        f"first.{name}" for name in quantizers_for(layer)
    ]


def test_swapping_twice_is_refused() -> None:
    layer = swap_in(nn.Linear(8, 8))
    quantizers = dict(layer.quantizers())
    with pytest.raises(ModeError, match=r"^blocks.3.up is a QuantLinear already; unquantize it first$"):
        swap("blocks.3.up", layer, type(layer), quantizers_for(layer))

    assert layer.quantizers() == quantizers


class Interrupted(dict[str, TensorQuantizer]):
    """Quantizers of which the last one raises, as Ctrl-C between two of them would."""

    def __getitem__(self, name: str) -> TensorQuantizer:
        if name == "output_quantizer":
            raise KeyboardInterrupt
        return super().__getitem__(name)


def test_an_interrupted_swap_can_be_undone() -> None:
    layer = decorated()
    before = snapshot(layer)
    with pytest.raises(KeyboardInterrupt):
        swap_in(layer, Interrupted(quantizers_for(layer)))
    assert isinstance(layer, QuantModule)

    unswap("layer", layer)

    assert type(layer) is nn.Linear
    assert snapshot(layer) == before


def test_a_class_that_cannot_be_assigned_leaves_the_layer() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("extra",)

    quantized = quantized_class(nn.Linear)
    assert quantized is not None
    layer = Slotted(8, 8)
    before = snapshot(layer)
    with pytest.raises(TypeError, match="layout differs"):
        swap("layer", layer, quantized, quantizers_for(layer))

    assert type(layer) is Slotted
    assert snapshot(layer) == before


def test_a_submodule_with_the_name_of_a_quantizer_is_not_lost() -> None:
    layer = nn.Linear(8, 8)
    layer.input_quantizer = nn.Identity()
    with pytest.raises(ModeError, match="input_quantizer"):
        swap_in(layer)

    assert isinstance(layer.input_quantizer, nn.Identity)


def test_an_attribute_with_the_name_of_a_quantizer_is_refused_by_name() -> None:
    layer: Any = nn.Linear(8, 8)
    layer.weight_quantizer = "mine"
    with pytest.raises(ModeError, match=r"layer.*weight_quantizer"):
        swap_in(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_swapped_layers_follow_their_model_to_another_dtype(dtype: torch.dtype) -> None:
    layer = swap_in(nn.Linear(8, 8)).to(dtype)
    x = X.to(dtype)

    assert layer.weight_quantizer.amax.dtype == torch.float32
    assert layer(x).dtype == dtype
    weight = layer.weight_quantizer(layer.weight)
    assert torch.equal(layer(x), linear(layer.input_quantizer(x), weight, layer.bias))
