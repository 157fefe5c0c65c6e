"""Every family in every format, divided over ranks, is the same again when it is put together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.trtllm_checkpoints import FAMILIES, FORMATS, config_of, same, tensors_of
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.sharding import merge_tensor, shard_tensor
from octavo.exporters.tensorrt_llm.stages import to_global

Ranks = list[dict[str, Tensor]]
LAYOUTS = [(tp, pp) for tp in (1, 2, 4) for pp in (1, 2)]


def sharded(config: dict[str, Any], tensors: dict[str, Tensor], layout: Layout) -> Ranks:
    ranks: Ranks = [{} for _ in range(layout.world_size)]
    for name, tensor in tensors.items():
        for rank, (local_name, part) in shard_tensor(name, tensor, config, layout).items():
            assert local_name not in ranks[rank]
            ranks[rank][local_name] = part
    return ranks


def merged(config: dict[str, Any], ranks: Ranks, layout: Layout) -> dict[str, Tensor]:
    whole = {}
    for stage in range(layout.pp_size):
        own = [ranks[rank] for rank in layout.stage(stage)]
        for local_name in own[0]:
            name = to_global(local_name, stage, config, layout)
            whole[name] = merge_tensor(name, [rank[local_name] for rank in own], config, layout)
    return whole


def check_round_trip(config: dict[str, Any], layout: Layout) -> None:
    layout.check(config)
    tensors = tensors_of(config)
    ranks = sharded(config, tensors, layout)
    again = merged(config, ranks, layout)
    assert again.keys() == tensors.keys()
    assert [name for name in tensors if not same(tensors[name], again[name])] == []
    names = [set(ranks[rank]) for rank in layout.stage(0)]
    assert all(each == names[0] for each in names)


@pytest.mark.parametrize("quant_algo", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merge_undoes_shard(family: str, quant_algo: str | None) -> None:
    config = config_of(family, quant_algo)
    for tp, pp in LAYOUTS:
        check_round_trip(config, Layout(tp, pp))


@pytest.mark.parametrize("quant_algo", FORMATS)
@pytest.mark.parametrize(("tp", "ep"), [(2, 2), (4, 2), (4, 4)])
def test_merge_undoes_shard_of_groups_of_experts(quant_algo: str | None, tp: int, ep: int) -> None:
    check_round_trip(config_of("mixtral", quant_algo), Layout(tp, 2, ep))


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(("llama", "qwen2", "gpt2", "phi3")),
    quant_algo=st.sampled_from(FORMATS),
    tp=st.sampled_from((1, 2, 3, 4, 6)),
    pp=st.integers(1, 3),
    kv_heads=st.sampled_from((1, 2, 3, 4, 6, 12)),
    vocab=st.integers(7, 40),
)
def test_merge_undoes_shard_for_any_sizes_that_fit(
    family: str, quant_algo: str | None, tp: int, pp: int, kv_heads: int, vocab: int
) -> None:
    config = config_of(
        family,
        quant_algo,
        num_attention_heads=12,
        num_key_value_heads=kv_heads if kv_heads % tp == 0 or tp % kv_heads == 0 else 12,
        intermediate_size=192,
        num_hidden_layers=6,
        vocab_size=vocab,
    )
    check_round_trip(config, Layout(tp, pp))
