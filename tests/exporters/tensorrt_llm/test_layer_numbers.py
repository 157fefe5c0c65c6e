"""Exclusions and formats of layers follow the numbers that layers have in another layout."""

from __future__ import annotations

import pytest

from helpers.trtllm_checkpoints import config_of
from octavo.core.errors import UnsupportedError
from octavo.exporters.tensorrt_llm.layer_numbers import renumbered
from octavo.exporters.tensorrt_llm.layout import Layout

CONFIG = config_of("llama", "FP8")  # four layers
ONE, TWO = Layout(1, 1), Layout(1, 2)


def test_patterns_without_numbers_stay() -> None:
    entries = dict.fromkeys(["lm_head", "*router", "transformer.layers.*.mlp.fc"])
    assert list(renumbered(entries, CONFIG, ONE, TWO)) == list(entries)
    assert list(renumbered(entries, CONFIG, TWO, ONE)) == list(entries)


def test_what_every_stage_says_is_said_of_each_layer() -> None:
    entries = {"transformer.layers.1.mlp.fc": 8, "lm_head": 0, "transformer.layers.0.mlp*": 4}
    whole = {
        "transformer.layers.1.mlp.fc": 8,
        "transformer.layers.3.mlp.fc": 8,
        "lm_head": 0,
        "transformer.layers.0.mlp*": 4,
        "transformer.layers.2.mlp*": 4,
    }
    assert renumbered(entries, CONFIG, TWO, ONE) == whole
    assert renumbered(whole, CONFIG, ONE, TWO) == entries


def test_the_same_stages_keep_everything() -> None:
    entries = {"transformer.layers.1*": 8, "transformer.layers.9.x": 4}
    assert renumbered(entries, CONFIG, Layout(1, 2), Layout(4, 2)) == entries


@pytest.mark.parametrize(
    "entries",
    [
        {"transformer.layers.3.mlp.fc": 8},
        {"transformer.layers.3.mlp.fc": 8, "transformer.layers.1.mlp.fc": 4},
    ],
)
def test_stages_that_would_differ(entries: dict[str, int]) -> None:
    with pytest.raises(
        UnsupportedError, match=r"layers\.[13]\.mlp\.fc and .* different things .* with 2 stages both"
    ):
        renumbered(entries, CONFIG, ONE, TWO)


@pytest.mark.parametrize("pattern", ["transformer.layers.1*", "*layers.[12].mlp"])
def test_patterns_of_several_numbers(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="may match several numbers of layers"):
        renumbered({pattern: None}, CONFIG, ONE, TWO)
