"""Tensors that are not simply cut: padded vocabularies, heads that are the embedding, and what no rule is known for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from helpers.trtllm_checkpoints import HIDDEN, VOCAB, config_of, same
from octavo.core.errors import CheckpointError, ExportError, UnsupportedError
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.sharding import EMBEDDING, HEAD, merge_tensor, shard_tensor
from octavo.exporters.tensorrt_llm.stages import to_global, to_local

FOUR = Layout(4, 1)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_a_vocabulary_is_padded_with_zero_rows(name: str) -> None:
    config, table = config_of("llama", "FP8"), torch.randn(VOCAB, HIDDEN).bfloat16()

    parts = [part for _, part in shard_tensor(name, table, config, FOUR).values()]

    assert [part.shape[0] for part in parts] == [13, 13, 13, 13]  # ⌈50 / 4⌉
    assert same(parts[3][:11], table[39:])
    assert same(parts[3][11:], torch.zeros(2, HIDDEN, dtype=torch.bfloat16))
    assert same(merge_tensor(name, parts, config, FOUR), table)


def test_scales_of_padded_rows_are_one() -> None:
    config, scale = config_of("llama", "FP8"), torch.rand(VOCAB)

    parts = [part for _, part in shard_tensor("lm_head.weights_scaling_factor", scale, config, FOUR).values()]

    assert torch.cat(parts)[VOCAB:].tolist() == [1.0, 1.0]


def test_a_vocabulary_of_another_size_than_the_configs() -> None:
    config = config_of("llama", None)
    with pytest.raises(
        CheckpointError, match=r"has 51 rows in all; config\.json says vocab_size 50, so there must be 50"
    ):
        shard_tensor(HEAD, torch.zeros(51, HIDDEN), config, FOUR)
    with pytest.raises(
        CheckpointError, match=r"has 56 rows in all; config\.json says vocab_size 50, so there must be 52"
    ):
        merge_tensor(HEAD, [torch.zeros(14, HIDDEN)] * 4, config, FOUR)


def test_rows_after_the_vocabulary_that_are_no_padding() -> None:
    config, parts = config_of("llama", None), [torch.ones(13, HIDDEN)] * 4
    with pytest.raises(CheckpointError, match="has values in the rows after vocab_size 50"):
        merge_tensor(HEAD, parts, config, FOUR)


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({"use_parallel_embedding": False}, [(VOCAB, HIDDEN)] * 4),
        ({"embedding_sharding_dim": 1}, [(VOCAB, HIDDEN // 4)] * 4),
    ],
)
def test_embeddings_that_are_not_divided_by_rows(
    changes: dict[str, Any], shapes: list[tuple[int, int]]
) -> None:
    config, table = config_of("llama", None, **changes), torch.randn(VOCAB, HIDDEN)

    parts = [part for _, part in shard_tensor(EMBEDDING, table, config, FOUR).values()]

    assert [tuple(part.shape) for part in parts] == shapes
    assert same(merge_tensor(EMBEDDING, parts, config, FOUR), table)


def test_a_head_that_is_the_embedding_is_written_on_the_last_stage() -> None:
    config, table = config_of("llama", None, share_embedding_table=True), torch.randn(VOCAB, HIDDEN)

    shards = shard_tensor(EMBEDDING, table, config, Layout(2, 2))

    assert {rank: name for rank, (name, _) in shards.items()} == {
        0: EMBEDDING,
        1: EMBEDDING,
        2: HEAD,
        3: HEAD,
    }
    assert same(shards[1][1], shards[3][1])
    assert Layout(2, 2).apply_to(config)["share_embedding_table"] is False
    assert list(shard_tensor(EMBEDDING, table, config, Layout(2, 1))) == [0, 1]
    assert Layout(2, 1).apply_to(config)["share_embedding_table"] is True


@pytest.mark.parametrize(
    ("name", "shape", "changes", "reason"),
    [
        ("transformer.layers.0.recurrent.conv1d.weight", (8, 1, 4, 1), {}, "layers of the kind conv1d"),
        ("transformer.layers.0.attention.q_layernorm.weight", (8, 16), {}, "a norm of shape [8, 16] differs"),
        (
            "transformer.layers.0.attention.qkv.weight",
            (256, 32),
            {"block_configs": []},
            "layers of this architecture differ in their number of heads",
        ),
    ],
)
def test_what_no_rule_is_known_for(name: str, shape: Any, changes: dict[str, Any], reason: str) -> None:
    config = config_of("llama", None, **changes)
    with pytest.raises(UnsupportedError, match=re.escape(f"{name!r} is not known: {reason}")):
        shard_tensor(name, torch.zeros(shape), config, FOUR)
    assert list(shard_tensor(name, torch.zeros(shape), config, Layout(1, 2))) == [0]


def test_a_tensor_whose_stage_is_not_known() -> None:
    config = config_of("llama", None)
    with pytest.raises(UnsupportedError, match=r"which of 2 stages has tensor 'rotary\.table' is not known"):
        shard_tensor("rotary.table", torch.zeros(1), config, Layout(1, 2))


def test_heads_that_do_not_fit_the_tensor() -> None:
    name, config = "transformer.layers.0.attention.qkv.weight", config_of("llama", None)
    with pytest.raises(
        CheckpointError, match=r"shape \[250, 32\].*in the proportion \(8, 4, 4\), of 16 each"
    ):
        shard_tensor(name, torch.zeros(250, 32), config, FOUR)
    with pytest.raises(
        CheckpointError, match=r"shape \[512, 32\].*in the proportion \(8, 4, 4\), of 16 each"
    ):
        shard_tensor(name, torch.zeros(512, 32), config, FOUR)
    with pytest.raises(CheckpointError, match=r"shape \[60, 32\].*in the proportion \(2, 1, 1\), of 16 each"):
        merge_tensor(name, [torch.zeros(60, 32)] * 4, config, FOUR)


def test_heads_that_ranks_cannot_have() -> None:
    name, config = (
        "transformer.layers.0.attention.qkv.weight",
        config_of("llama", None, num_key_value_heads=3),
    )
    with pytest.raises(
        CheckpointError, match=r"cannot be that of 2 ranks: config\.json says that it has \(8, 3, 3\)"
    ):
        merge_tensor(name, [torch.zeros(96, 32)] * 2, config, Layout(2, 1))


def test_a_dim_that_does_not_divide() -> None:
    name, config = "transformer.layers.0.mlp.proj.weights_scaling_factor", config_of("llama", None)
    with pytest.raises(
        ExportError, match=re.escape(f"{name!r} of shape [32, 6] cannot be divided in 4 equal parts")
    ):
        shard_tensor(name, torch.zeros(32, 6), config, FOUR)


def test_heads_that_can_be_neither_divided_nor_repeated() -> None:
    name, config = "transformer.layers.0.attention.qkv.bias", config_of("llama", None, num_key_value_heads=3)
    with pytest.raises(ExportError, match="3 heads can be neither divided over nor repeated for 4 ranks"):
        shard_tensor(name, torch.zeros(14 * 16), config, FOUR)


def test_names_of_layers_on_stages() -> None:
    config, layout = config_of("llama", None), Layout(1, 2)
    for name, place in {
        "transformer.layers.3.mlp.fc.weight": (1, "transformer.layers.1.mlp.fc.weight"),
        "decoder_layers.2.x": (1, "decoder_layers.0.x"),
        "medusa_heads.0.medusa_layers.3.linear.weight": (1, "medusa_heads.0.medusa_layers.3.linear.weight"),
        "transformer.ln_embed.weight": (0, "transformer.ln_embed.weight"),
    }.items():
        assert to_local(name, config, layout) == place
        assert to_global(place[1], place[0], config, layout) == name


def test_layers_that_do_not_exist() -> None:
    config, layout = config_of("llama", None), Layout(1, 2)
    with pytest.raises(
        ExportError, match=r"'transformer\.layers\.4\.x\' cannot be put on one of 2 equal stages of 4 layers"
    ):
        to_local("transformer.layers.4.x", config, layout)
    with pytest.raises(
        CheckpointError, match=r"of stage 0 is in layer 2; config\.json says that each of 2 stages has 2"
    ):
        to_global("transformer.layers.2.x", 0, config, layout)
