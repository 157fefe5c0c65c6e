"""InMemoryBlocks: every tensor of a model in exactly one block, the blocks in the order they run."""

from __future__ import annotations

import pytest
from torch import nn

import octavo
from helpers.calibration_models import two_layers
from helpers.tiny import tiny_llama, token_batches
from octavo.core.model.blocks import InMemoryBlocks
from octavo.core.plugins import plugins


def source_of(model: nn.Module) -> InMemoryBlocks:
    return InMemoryBlocks(model, plugins().describe_model(model))


def models() -> dict[str, nn.Module]:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    return {
        "eleven blocks": tiny_llama(num_hidden_layers=11, hidden_size=32, intermediate_size=32, head_dim=8),
        "tied": tiny_llama(tie_word_embeddings=True),
        "with biases": tiny_llama(attention_bias=True, mlp_bias=True),
        "quantized": octavo.quantize(tiny_llama(), config, token_batches(1), quiet=True),
        "not described": two_layers(),
    }


@pytest.mark.parametrize("kind", models())
def test_every_tensor_is_in_exactly_one_block(kind: str) -> None:
    model = models()[kind]

    blocks = list(source_of(model).blocks())

    handed_out = [name for block in blocks for name in block.tensors]
    assert len(handed_out) == len(set(handed_out))
    assert set(handed_out) == set(model.state_dict())


def test_blocks_come_in_order_and_the_rest_last() -> None:
    model = models()["eleven blocks"]

    blocks = list(source_of(model).blocks())

    assert [block.name for block in blocks] == [*(f"model.layers.{n}" for n in range(11)), ""]
    assert all(block.module is model.get_submodule(block.name) for block in blocks)
    assert set(blocks[-1].tensors) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert all(name.startswith("model.layers.1.") for name in blocks[1].tensors), "and none of layers.10"


def test_a_model_without_a_description_is_one_block() -> None:
    model = two_layers()

    (block,) = source_of(model).blocks()

    assert (block.name, block.module) == ("", model)
    assert block.tensors == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_materialized_gives_the_module_with_its_weights() -> None:
    model = tiny_llama()
    source = source_of(model)

    for block in source.blocks():
        with source.materialized(block) as module:
            own = dict(module.named_parameters())
            assert all(not parameter.is_meta for parameter in own.values())
            prefix = f"{block.name}." if block.name else ""
            assert all(name.removeprefix(prefix) in module.state_dict() for name in block.tensors)
