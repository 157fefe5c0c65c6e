"""Entries that are no entries: what was found, where, and the nearest key."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from helpers.config_rules import OFF, decided, entry, is_on
from octavo.core.config.entries import parse_rules
from octavo.core.errors import ConfigError

W = "*weight_quantizer"
ERRORS: list[tuple[Any, str]] = [
    (None, "quant_cfg must be a list of entries or a dict of globs, found NoneType"),
    ("FP8_DEFAULT_CFG", "quant_cfg must be a list of entries or a dict of globs, found str"),
    (8, "quant_cfg must be a list of entries or a dict of globs, found int"),
    ([OFF, "*weight_quantizer"], "quant_cfg[1] must be a dict, found '*weight_quantizer'"),
    ([{"cfg": {"num_bits": 8}}], "quant_cfg[0] has no 'quantizer_name': {'cfg': {'num_bits': 8}}"),
    ([{"quantiser_name": W, "enable": False}], "quant_cfg[0] has no 'quantizer_name'"),
    (
        [OFF, {**entry(W, {"num_bits": 8}), "parent_clas": "nn.Linear"}],
        "quant_cfg[1]: unknown key 'parent_clas'. Did you mean 'parent_class'?",
    ),
    ([{"quantizer_name": W}], f"quant_cfg[0] ({W!r}) has neither 'cfg' nor 'enable': it would do nothing"),
    ([entry(W, {}, enable=True)], f"quant_cfg[0] ({W!r}): 'cfg' is empty; leave it out to only toggle"),
    ([entry(W, [])], f"quant_cfg[0] ({W!r}): 'cfg' is empty"),
    ([entry(W, 8)], f"{W!r}: expected quantizer attributes (a dict, or a list of them), found 8"),
    (
        [entry(W, [{"num_bits": 8}, 4])],
        f"{W!r}: expected quantizer attributes (a dict, or a list of them), found [",
    ),
    ({W: 8}, f"{W!r}: expected quantizer attributes (a dict, or a list of them), found 8"),
    ({W: "int8"}, f"{W!r}: expected quantizer attributes (a dict, or a list of them), found 'int8'"),
    ({"nn.Linear": {5: {"num_bits": 8}}}, "quant_cfg: patterns are globs, found 5; write the names"),
    ({W: []}, f"{W!r}: expected quantizer attributes (a dict, or a list of them), found []"),
    ({len: {"num_bits": 8}}, "quant_cfg: patterns are globs, found <built-in function len>; write the names"),
]


@pytest.mark.parametrize(("quant_cfg", "message"), ERRORS, ids=[str(quant_cfg) for quant_cfg, _ in ERRORS])
def test_message(quant_cfg: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(quant_cfg)

    assert message in str(caught.value)


def test_an_unknown_attribute_names_the_entry() -> None:
    with pytest.raises(ConfigError, match=r"^entry '\*weight_quantizer' in nn.Linear: .*'bits'"):
        decided([OFF, entry(W, {"bits": 8}, parent_class="nn.Linear")])


def test_the_entry_with_the_unknown_attribute_is_named() -> None:
    with pytest.raises(ConfigError, match=r"entry '\*weight_quantizer'"):
        decided([entry(W, {"num_bit": 8}), entry("*", enable=True)])


@pytest.mark.parametrize("quant_cfg", [
    [entry(W, {"num_bit": 4}), entry(W, {"num_bits": 8})],
    [entry(W, {"num_bits": 8}), entry("*of_another_model*", {"num_bit": 4})],
], ids=["replaced later", "matches nothing"])  # fmt: skip
def test_an_unknown_attribute_is_never_silent(quant_cfg: Any) -> None:
    with pytest.raises(ConfigError, match=r"'num_bit'\. Did you mean 'num_bits'"):
        decided(quant_cfg)


def test_a_misspelt_attribute_with_a_dict_as_value() -> None:
    with pytest.raises(ConfigError, match=r"'block_size'\. Did you mean 'block_sizes'"):
        decided({"default": {"enable": False}, W: {"block_size": {-1: 128}}})


@pytest.mark.parametrize("quant_cfg", [{W: None}, [{"quantizer_name": W, "enable": None}]], ids=str)
def test_none_says_nothing(quant_cfg: Any) -> None:
    with pytest.raises(ConfigError, match="None"):
        decided(quant_cfg)


@pytest.mark.parametrize("value", [0, "false", "no"])
def test_enable_is_a_truth_value(value: Any) -> None:
    """It may be refused, or read as pydantic reads it elsewhere; never as the opposite of what it says."""
    with suppress(ConfigError):
        assert not is_on([entry(W, {"num_bits": 8}, enable=value)])


@pytest.mark.parametrize(
    "keys", [{"quantizer_name": 5}, {"quantizer_name": None}, {"parent_class": 5}], ids=str
)
def test_names_are_strings(keys: dict[str, Any]) -> None:
    (name, value), *_ = keys.items()
    with pytest.raises(ConfigError, match=f"{name}.*{value}"):
        decided([{"quantizer_name": W, "cfg": {"num_bits": 8}, **keys}])
