"""Which layers' keys and values can be quantized: those that look their attention function up in the interface."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.utils.deprecation import deprecate_kwarg

from helpers.adapters_models import SIZES, tiny_model
from octavo.adapters.huggingface.attention import interface_layers
from octavo.adapters.huggingface.plugin import attention_layers

FOUND = {
    "llama": "model.layers.{}.self_attn",
    "mistral": "model.layers.{}.self_attn",
    "qwen2": "model.layers.{}.self_attn",
    "qwen3": "model.layers.{}.self_attn",
    "olmo2": "model.layers.{}.self_attn",
    "gemma2": "model.layers.{}.self_attn",
    "gemma3_text": "model.layers.{}.self_attn",
    "phi3": "model.layers.{}.self_attn",
    "mixtral": "model.layers.{}.self_attn",
    "gpt2": "transformer.h.{}.attn",
    "gpt_neox": "gpt_neox.layers.{}.attention",
}
WITHOUT_INTERFACE = ("bloom", "mpt", "gptj", "mamba")


@pytest.mark.parametrize("model_type", FOUND)
def test_every_attention_layer_of_an_interface_model_is_found(model_type: str) -> None:
    with torch.device("meta"):
        model = tiny_model(model_type)

    found = interface_layers(model)

    assert list(found) == [FOUND[model_type].format(index) for index in range(2)]
    assert all(found[name] is model.get_submodule(name) for name in found)


@pytest.mark.parametrize("model_type", WITHOUT_INTERFACE)
def test_models_that_do_not_use_the_interface_have_none(model_type: str) -> None:
    with torch.device("meta"):
        assert interface_layers(tiny_model(model_type)) == {}


def test_a_decorated_forward_is_looked_through() -> None:
    class DecoratedAttention(LlamaAttention):
        forward = deprecate_kwarg("past_key_value", version="9.0", new_name="past_key_values")(
            LlamaAttention.forward
        )

    with torch.device("meta"):
        model = tiny_model("llama")
    model.get_submodule("model.layers.1.self_attn").__class__ = DecoratedAttention

    assert list(interface_layers(model)) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_a_bare_backbone_has_them_too() -> None:
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(**SIZES))

    assert list(attention_layers(model) or ()) == ["layers.0.self_attn", "layers.1.self_attn"]


def test_models_of_other_libraries_are_not_the_adapters() -> None:
    assert attention_layers(nn.Sequential(nn.MultiheadAttention(8, 2))) is None
