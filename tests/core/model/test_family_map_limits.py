"""Which models family maps describe, and what happens where a map does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig

from octavo.core.errors import ConfigError
from octavo.core.model.family_map import describe_by_map, known_model_types
from octavo.core.plugins import plugins

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_the_known_types_are_those_of_the_maps() -> None:
    assert known_model_types() == ["llama", "mistral", "qwen2", "qwen3"]


def test_what_no_map_knows_is_not_described() -> None:
    with torch.device("meta"):
        gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))
        backbone = AutoModel.from_config(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}))

    assert plugins().describe_model(gpt2) is None
    assert plugins().describe_model(backbone) is None, (
        "no `model.layers` in it: names are all there is to go by"
    )
    assert plugins().describe_model(nn.Linear(2, 2)) is None
    assert describe_by_map(nn.Linear(2, 2), "llama", object()) is None


def test_a_map_that_does_not_fit_names_the_layers_that_are_missing() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "num_hidden_layers": 3}))
    del model.model.layers[1].mlp.gate_proj
    del model.model.layers[2].self_attn.o_proj
    message = (
        r"^the family map 'llama' \(model type 'llama'\) names layers that this LlamaForCausalLM does not have: "
        "model.layers.1.mlp.gate_proj, model.layers.2.self_attn.o_proj$"
    )

    with pytest.raises(ConfigError, match=message):
        plugins().describe_model(model)
