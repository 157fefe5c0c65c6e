"""Family maps: every role names a module of the real model, and every layer has a role."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

import octavo
from octavo.core.model.description import ModelDescription
from octavo.core.plugins import plugins

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,  # layers.10 comes after layers.9, not after layers.1
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
}
ROLES = {
    "norm.attention": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "norm.mlp": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
QWEN3 = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[family](**SIZES))
    return made


@pytest.fixture(scope="module")
def description(model: nn.Module) -> ModelDescription:
    found = plugins().describe_model(model)
    assert found is not None
    return found


def test_the_blocks_come_in_the_order_they_run(family: str, description: ModelDescription) -> None:
    assert description.family == family
    assert [block.name for block in description.blocks] == [f"model.layers.{n}" for n in range(11)]
    assert {block.kind for block in description.blocks} == {"attention"}


def test_every_role_of_a_block_is_the_module_it_should_be(family: str, description: ModelDescription) -> None:
    expected = {**ROLES, **(QWEN3 if family == "qwen3" else {})}

    for block in description.blocks:
        assert block.roles == {role: f"{block.name}.{path}" for role, path in expected.items()}


def test_every_parameter_belongs_to_exactly_one_role(model: nn.Module, description: ModelDescription) -> None:
    named = [
        *description.roles.values(),
        *(name for block in description.blocks for name in block.roles.values()),
    ]

    assert len(named) == len(set(named))
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} == set(named)
    assert set(description.roles) == {"embedding", "norm.final", "lm_head"}


def test_groups_and_splits_follow_the_roles(description: ModelDescription) -> None:
    last = "model.layers.10"
    attention = tuple(f"{last}.self_attn.{letter}_proj" for letter in "qkv")
    feed_forward = (f"{last}.mlp.gate_proj", f"{last}.mlp.up_proj")

    assert len(description.same_input) == 22
    assert description.same_input[-2:] == (attention, feed_forward)
    assert {n for n in description.column_parallel if n.startswith(last)} == {*attention, *feed_forward}
    rows = {n for n in description.row_parallel if n.startswith(last)}
    assert rows == {f"{last}.self_attn.o_proj", f"{last}.mlp.down_proj"}


def test_hyperparameters_are_the_configs(description: ModelDescription) -> None:
    assert description.hyperparameters == {
        "hidden_size": 32, "intermediate_size": 48, "num_layers": 11, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 8, "vocab_size": 64,
    }  # fmt: skip


def test_hyperparameters_that_a_config_does_not_have_are_left_out() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})
        )

    description = plugins().describe_model(model)

    assert description is not None
    assert "head_dim" not in description.hyperparameters
    assert description.hyperparameters["num_heads"] == 4


def test_the_map_agrees_with_the_dataflow_of_the_model(family: str, description: ModelDescription) -> None:
    """`plan` runs the dataflow probe and raises where it and the map disagree."""
    small = AutoModelForCausalLM.from_config(CONFIGS[family](**{**SIZES, "num_hidden_layers": 2}))

    groups = octavo.plan(small, "FP8_DEFAULT_CFG").groups

    assert set(groups) == {tuple(sorted(group)) for group in description.same_input[:4]}
