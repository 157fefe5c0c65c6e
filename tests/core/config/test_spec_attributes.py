"""A format's attributes mean the very format again, for every preset and every kind of format."""

from __future__ import annotations

import pytest

from octavo.core.config import preset, preset_names
from octavo.core.config.attributes import QuantizerAttributes, parse_attributes
from octavo.core.config.entries import parse_rules
from octavo.core.config.spec_attributes import spec_attributes
from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec

KINDS = [
    QuantSpec("int8", PerChannel(0)),
    QuantSpec("int8_narrow", PerChannel(-1)),
    QuantSpec("uint4", PerBlock(((-1, 32),))),
    QuantSpec("e5m2", PerTensor()),
    QuantSpec("e4m3", PerToken(), dynamic=True),
    QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128)))),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    QuantSpec("e2m3", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
]


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_every_kind(spec: QuantSpec) -> None:
    assert QuantizerAttributes(**spec_attributes(spec)).to_spec() == spec


def test_every_preset() -> None:
    specs = set()
    for name in preset_names():
        for rule in parse_rules(preset(name)["quant_cfg"]):
            for attributes in rule.attributes or ():
                try:
                    specs.add(parse_attributes(attributes, name).to_spec())
                except UnsupportedError:
                    continue
    assert len(specs) > 10
    assert [spec for spec in specs if QuantizerAttributes(**spec_attributes(spec)).to_spec() != spec] == []
