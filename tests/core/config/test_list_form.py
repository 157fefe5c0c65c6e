"""The ordered list: later entries win, and `cfg` replaces the whole attribute set."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.config_rules import INPUT, OFF, WEIGHT, decided, entry, is_on

W = "*weight_quantizer"
INT4_ROWS = {"num_bits": 4, "axis": 0}

# entries, and the attributes of the weight quantizer that then differ from their defaults
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nothing matches": ([entry("*input_quantizer", INT4_ROWS)], []),
    "one entry": ([entry(W, INT4_ROWS)], [INT4_ROWS]),
    "the later cfg replaces all": ([entry(W, INT4_ROWS), entry(W, {"num_bits": 6})], [{"num_bits": 6}]),
    "a narrower glob before loses": ([entry("*.0.*", INT4_ROWS), entry("*", {"num_bits": 6})], [{"num_bits": 6}]),
    "off keeps attributes": ([entry(W, INT4_ROWS), entry(W, enable=False)], [{**INT4_ROWS, "enable": False}]),
    "on again has them": (
        [entry(W, INT4_ROWS), entry(W, enable=False), entry(W, enable=True)],
        [INT4_ROWS],
    ),
    "cfg turns on": ([OFF, entry(W, INT4_ROWS)], [INT4_ROWS]),
    "cfg with enable=True turns on": ([OFF, entry(W, INT4_ROWS, enable=True)], [INT4_ROWS]),
    "cfg with enable=False": ([entry(W, INT4_ROWS, enable=False)], [{**INT4_ROWS, "enable": False}]),
    "cfg that says enable=False": ([entry(W, {"num_bits": 6, "enable": False})], [{"num_bits": 6, "enable": False}]),
    "on without attributes is INT8": ([entry(W, enable=True)], [{}]),
    "off without attributes": ([entry("*", enable=False)], [{"enable": False}]),
    "defaults said aloud": ([entry(W, {"num_bits": 8, "axis": None})], [{}]),
    "globs are on the whole name": ([entry("up_proj.weight_quantizer", INT4_ROWS)], []),
    "globs see upper and lower case": ([entry("*Weight_Quantizer", INT4_ROWS)], []),
    "sets of characters": ([entry("*layers.[0-3].*.weight_quantizer", INT4_ROWS)], [INT4_ROWS]),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "expected"), CASES.values(), ids=CASES.keys())
def test_precedence(entries: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert decided(entries) == expected


@pytest.mark.parametrize("name", ["Linear", "nn.Linear", "torch.nn.modules.linear:Linear", "Module"])
def test_parent_class_goes_by_every_name_of_the_class(name: str) -> None:
    entries = [OFF, entry("*", INT4_ROWS, parent_class=name)]
    classes = {"Linear", "nn.Linear", "torch.nn.modules.linear:Linear", "Module", "nn.Module"}

    assert decided(entries, WEIGHT, classes) == [INT4_ROWS]
    assert not is_on(entries, WEIGHT, {"Embedding", "nn.Embedding"})


def test_parent_class_and_glob_must_both_match() -> None:
    entries = [entry("*weight_quantizer", INT4_ROWS, parent_class="nn.Linear")]

    assert is_on(entries, WEIGHT, {"nn.Linear"})
    assert not is_on(entries, INPUT, {"nn.Linear"})
    assert not is_on(entries, WEIGHT, {"nn.Embedding"})


def test_one_key_entries_of_older_lists_merge() -> None:
    """`[{glob: attributes}, …]` is the older dict written as a list."""
    entries = [{"*": {"num_bits": 4}}, {W: {"axis": 0}}, {"*up_proj*": {"enable": False}}]

    assert decided(entries) == [{"num_bits": 4, "axis": 0, "enable": False}]
