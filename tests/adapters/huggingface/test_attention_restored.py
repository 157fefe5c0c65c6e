"""Unquantizing puts the model's own attention implementation back, and a failed quantize leaves it alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import octavo
from helpers.adapters_models import FP8_KV, SIZES, logits, padded_batch, tiny_model, tokens
from octavo.adapters.huggingface.attention import route_attention, unroute_attention
from octavo.core.errors import CalibrationError

PRESET = octavo.merge_configs(octavo.FP8_DEFAULT_CFG, octavo.FP8_KV_CFG)


def implementations(model: nn.Module) -> list[str]:
    """The implementation that each layer asks for."""
    return [layer.self_attn.config._attn_implementation for layer in model.model.layers]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_implementation_and_the_whole_config_come_back(attention: str) -> None:
    model = tiny_model("llama", attention)
    config, classes = dict(vars(model.config)), [type(module) for module in model.modules()]
    expected = logits(model, padded_batch())

    octavo.quantize(model, PRESET, [tokens()], quiet=True)
    assert implementations(model) == ["octavo", "octavo"]
    assert vars(model.config) == config
    octavo.unquantize(model)

    assert all(layer.self_attn.config is model.config for layer in model.model.layers)
    assert vars(model.config) == config
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(logits(model, padded_batch()), expected)


def test_a_copy_of_a_quantized_model_is_routed_too() -> None:
    model = octavo.quantize(tiny_model("llama"), FP8_KV, [tokens()], quiet=True)
    twin = copy.deepcopy(model)
    expected = logits(model)

    octavo.unquantize(model)

    assert twin.model.layers[0].self_attn.config.own is twin.config
    assert torch.equal(logits(twin), expected)


def test_a_failed_quantize_leaves_the_implementation() -> None:
    model = tiny_model("llama", "eager")
    with pytest.raises(CalibrationError):
        octavo.quantize(model, FP8_KV, [], quiet=True)

    assert implementations(model) == ["eager", "eager"]


def test_models_without_kv_quantizers_are_not_routed() -> None:
    model = octavo.quantize(tiny_model("llama", "sdpa"), "FP8_DEFAULT_CFG", [tokens()], quiet=True)

    assert implementations(model) == ["sdpa", "sdpa"]


def test_routing_twice_and_unrouting_twice_change_nothing() -> None:
    model = octavo.quantize(tiny_model("llama", "eager"), FP8_KV, [tokens()], quiet=True)

    route_attention(model)
    assert implementations(model) == ["octavo", "octavo"]
    unroute_attention(model)
    unroute_attention(model)
    assert implementations(model) == ["eager", "eager"]


def test_saved_configs_do_not_name_our_implementation() -> None:
    model = octavo.quantize(tiny_model("llama", "eager"), FP8_KV, [tokens()], quiet=True)

    assert "octavo" not in model.config.to_json_string()


def test_an_attention_class_that_a_user_derived_runs_eager_attention() -> None:
    class OwnAttention(LlamaAttention):
        """Inherits forward; its module has no eager_attention_forward."""

    model = tiny_model("llama", "eager")
    for layer in model.model.layers:
        layer.self_attn.__class__ = OwnAttention

    octavo.quantize(model, FP8_KV, [tokens()], quiet=True)

    assert type(model.model.layers[0].self_attn).__name__ == "QuantOwnAttention"


def test_two_models_with_one_config_object_are_independent() -> None:
    config = LlamaConfig(**SIZES)
    first, second = (LlamaForCausalLM(config).eval() for _ in range(2))
    for model in (first, second):
        octavo.quantize(model, FP8_KV, [tokens()], quiet=True)
    expected = logits(second)

    octavo.unquantize(first)

    assert torch.equal(logits(second), expected), "the second model still quantizes its keys and values"


def test_sub_models_keep_implementations_of_their_own() -> None:
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config=SIZES,
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        mm_tokens_per_image=4,
        attn_implementation={"text_config": "eager", "vision_config": "sdpa"},
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    assert model.config.text_config._attn_implementation == "eager"
    rule = {**octavo.FP8_KV_CFG["quant_cfg"][0], "quantizer_name": "*language_model*[kv]_bmm_quantizer"}

    octavo.quantize(model, {"quant_cfg": [rule], "algorithm": "max"}, [tokens()], quiet=True)
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.model.language_model.layers[0].self_attn.config._attn_implementation == "octavo"
    octavo.unquantize(model)
    assert model.model.language_model.layers[0].self_attn.config is model.config.text_config
