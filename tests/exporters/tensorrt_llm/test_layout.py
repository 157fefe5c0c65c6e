"""Layouts: what they say in config.json, and which models they refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.trtllm_checkpoints import config_of
from octavo.core.errors import CheckpointError, ExportError
from octavo.exporters.tensorrt_llm.layout import Layout


def test_what_config_json_says() -> None:
    config = Layout(4, 2).apply_to(config_of("llama", "FP8"))

    assert config["mapping"] == {"world_size": 8, "tp_size": 4, "pp_size": 2}
    assert config["rank"] == 7
    assert Layout.of(config) == Layout(4, 2)


def test_what_config_json_says_of_experts() -> None:
    config = Layout(4, 1, 2).apply_to(config_of("mixtral", None))

    sizes = {"world_size": 4, "tp_size": 4, "pp_size": 1, "moe_tp_size": 2, "moe_ep_size": 2}
    assert config["mapping"] == sizes
    assert Layout.of(config) == Layout(4, 1, 2)


def test_a_config_without_a_mapping_is_for_one_rank_and_minus_one_for_no_groups() -> None:
    assert Layout.of({}) == Layout(1, 1)
    assert Layout.of({"mapping": {"world_size": 2, "tp_size": 2, "moe_ep_size": -1}}) == Layout(2, 1)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([1], "mapping of config.json must be an object, found [1]"),
        ({"tp_size": "2"}, "at least 1, and cp_size 1; found {'tp_size': '2'}"),
        ({"tp_size": 0}, "at least 1, and cp_size 1; found {'tp_size': 0}"),
        ({"world_size": 2, "cp_size": 2}, "cp_size 1; found {'world_size': 2, 'cp_size': 2}"),
        ({"world_size": 3, "tp_size": 2}, "says world_size 3, which is not tp_size 2 · pp_size 1"),
        ({"world_size": 2, "tp_size": 2, "moe_ep_size": 4}, "found ep 4 and tp 2"),
    ],
)
def test_mappings_that_are_none(mapping: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Layout.of({"mapping": mapping})


@pytest.mark.parametrize("sizes", [(0, 1), (1, -1), (2, 1.0), (True, 1)])
def test_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(ExportError, match="sizes of a layout are whole numbers, at least 1; found"):
        Layout(*sizes)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (Layout(1, 3), {}, "tp 1, pp 3, ep 1: 4 layers are not divisible by 3 stages"),
        (Layout(3, 1), {}, "num_attention_heads 8 is not divisible by 3 ranks"),
        (
            Layout(4, 1),
            {"num_key_value_heads": 3},
            "3 key/value heads can be neither divided over nor repeated for 4",
        ),
        (Layout(2, 1), {"intermediate_size": 63}, "intermediate_size 63 is not divisible by 2 ranks"),
        (Layout(8, 1), {}, "intermediate_size 64 over 8 ranks is 8, no multiple of the block 16"),
        (Layout(2, 1), {"head_size": 4}, "the length of all heads 32 over 2 ranks is 16"),
        (
            Layout(4, 1),
            {"embedding_sharding_dim": 1, "hidden_size": 34},
            "hidden_size 34 is not divisible by 4 ranks",
        ),
        (
            Layout(2, 1),
            {"share_embedding_table": True, "use_parallel_embedding": False},
            "its head is the token embedding, which every rank has whole",
        ),
        (Layout(2, 1, 2), {}, "it has no experts for 2 groups"),
        (Layout(3, 1, 3), {"moe": {"num_experts": 8}}, "8 experts are not divisible by 3 groups"),
    ],
)
def test_models_that_cannot_be_divided(layout: Layout, changes: dict[str, Any], message: str) -> None:
    config = config_of("llama", "W4A16_AWQ", **changes)
    if "head_size" in changes:
        config["quantization"]["group_size"] = 32
    with pytest.raises(ExportError, match=re.escape(message)):
        layout.check(config)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ExportError) as caught:
        Layout(3, 3).check(config_of("llama", None))
    assert all(
        what in str(caught.value) for what in ("4 layers", "4 key/value heads", "num_attention_heads 8")
    )


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", None), ("num_attention_heads", "8")])
def test_a_config_that_lacks_a_size(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"must say {key}, a whole number, at least 1; found {value!r}"):
        Layout(2, 2).check(config_of("llama", None, **{key: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": [8]}, "moe of config.json must be an object, found [8]"),
        ({"moe": {"num_experts": "8"}}, "must say num_experts, a whole number, at least 1; found '8'"),
        ({"quantization": "FP8"}, "quantization of config.json must be an object, found 'FP8'"),
        ({"quantization": {"group_size": -1}}, "must say group_size, a whole number, at least 1; found -1"),
    ],
)
def test_a_config_whose_tables_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Layout(2, 2).check(config_of("llama", None, **changes))


def test_experts_by_their_older_name() -> None:
    config = config_of("llama", None, moe_num_experts=6)
    with pytest.raises(ExportError, match="6 experts are not divisible by 4 groups"):
        Layout(4, 1, 4).check(config)


def test_experts_are_divided_by_the_ranks_of_a_group() -> None:
    config = config_of("mixtral", None, intermediate_size=2)
    Layout(4, 1, 2).check(config)
    with pytest.raises(ExportError, match="intermediate_size 2 is not divisible by 4 ranks"):
        Layout(4, 1).check(config)
