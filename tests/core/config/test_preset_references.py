"""Presets against the configs that ModelOpt 0.47 itself recorded beside its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import octavo

BASES = {"dense": 17, "moe": 14, "tied": 17}


def recorded(shared: Path, base: str) -> dict[str, Any]:
    folders = sorted((shared / "reference" / "modelopt" / base).glob("*/made_by.json"))
    return {path.parent.name: json.loads(path.read_text())["quant_cfg"] for path in folders}


@pytest.mark.parametrize("base", BASES)
def test_every_recorded_config_is_ours(shared: Path, base: str) -> None:
    configs = recorded(shared, base)
    ours = {name: octavo.merge_configs(*name.split("+")) for name in configs}

    assert len(configs) == BASES[base]
    for name, config in configs.items():
        assert json.loads(json.dumps(ours[name])) == config, name
