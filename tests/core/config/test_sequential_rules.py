"""Lists of attribute sets: quantizers that run in turn, and what later entries do to them and to single stages."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.config_rules import FP8, INT4_BLOCK, OFF, decided, entry, is_on

W = "*weight_quantizer"
BOTH = [INT4_BLOCK, FP8]


def later(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The list form: two stages, then these entries."""
    return decided([OFF, entry(W, BOTH), *entries])


def merged(**later_entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The dict form: two stages, then an entry for each keyword, whose glob is the weight's name and the key."""
    suffixes = {"whole": "", "first": ".0", "second": ".1", "all_of": "*"}
    entries = {f"*up_proj.weight_quantizer{suffixes[key]}": value for key, value in later_entries.items()}
    return decided({"default": {"enable": False, "axis": 0}, W: BOTH, **entries})


def test_a_list_makes_a_stage_of_each_set() -> None:
    assert later() == BOTH
    assert merged() == BOTH, "new stages start from the defaults, not from what `default` said before"


@pytest.mark.parametrize(
    "glob", ["*up_proj*", W, "*weight_quantizer*", "model.layers.0.mlp.up_proj.weight_quantizer"]
)
def test_switching_the_whole(glob: str) -> None:
    off = later(entry(glob, enable=False))

    assert off == [{**stage, "enable": False} for stage in BOTH]
    assert later(entry(glob, enable=False), entry(glob, enable=True)) == BOTH


def test_a_single_stage_is_switched_by_its_number() -> None:
    assert later(entry(f"{W}.0", enable=False)) == [{**INT4_BLOCK, "enable": False}, FP8]
    assert later(entry(f"{W}.1", enable=False)) == [INT4_BLOCK, {**FP8, "enable": False}]
    assert merged(second={"enable": False}) == [INT4_BLOCK, {**FP8, "enable": False}]
    assert is_on([OFF, entry(W, BOTH), entry(f"{W}.0", enable=False)])


def test_a_single_stage_merges_in_the_dict_form() -> None:
    assert merged(first={"num_bits": 6}) == [{**INT4_BLOCK, "num_bits": 6}, FP8]
    assert merged(first={"num_bits": 6}, second={"type": "dynamic"}) == [
        {**INT4_BLOCK, "num_bits": 6},
        {**FP8, "type": "dynamic"},
    ]


def test_a_single_stage_is_replaced_in_the_list_form() -> None:
    assert later(entry(f"{W}.1", {"num_bits": 6})) == [INT4_BLOCK, {"num_bits": 6}]
    assert later(entry(f"{W}.0", {"num_bits": 6})) == [{"num_bits": 6}, FP8]


def test_a_list_for_a_single_stage_takes_its_place() -> None:
    assert later(entry(f"{W}.0", [FP8, {"num_bits": 6}])) == [FP8, {"num_bits": 6}, FP8]


def test_a_glob_on_the_whole_still_reaches_it() -> None:
    """Unlike in ModelOpt 0.11, where names end in .0 and .1 by then and such a glob silently matches nothing."""
    assert later(entry(W, {"num_bits": 6})) == [{"num_bits": 6}]
    assert merged(whole={"enable": False}) == [{**stage, "enable": False} for stage in BOTH]
    assert merged(all_of={"axis": 1}) == [{**stage, "axis": 1} for stage in BOTH]


def test_another_list_replaces_the_stages() -> None:
    assert later(entry(W, [FP8, INT4_BLOCK, FP8])) == [FP8, INT4_BLOCK, FP8]
    assert decided({W: BOTH, "*up_proj*": [FP8, FP8]}) == [FP8, FP8]


def test_a_list_of_one_is_one_quantizer() -> None:
    assert decided([OFF, entry(W, [FP8])]) == [FP8]


def test_enable_acts_on_every_stage_and_a_stage_may_be_off() -> None:
    assert decided([entry(W, BOTH, enable=False)]) == [{**stage, "enable": False} for stage in BOTH]
    one_off = [INT4_BLOCK, {**FP8, "enable": False}]
    assert decided([entry(W, one_off, enable=True)]) == one_off
