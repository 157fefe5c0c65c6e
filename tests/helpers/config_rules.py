"""What a config decides for one quantizer, and configs to say it with."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from octavo.core.config.entries import parse_rules
from octavo.core.config.rules import decide

WEIGHT = "model.layers.0.mlp.up_proj.weight_quantizer"
INPUT = "model.layers.0.mlp.up_proj.input_quantizer"
OFF = {"quantizer_name": "*", "enable": False}
# Two stages as W4A8_AWQ_BETA_CFG has them.
INT4_BLOCK: dict[str, Any] = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
FP8: dict[str, Any] = {"num_bits": (4, 3)}


def decided(
    quant_cfg: Any, name: str = WEIGHT, classes: Collection[str] = ("Linear", "nn.Linear")
) -> list[dict[str, Any]]:
    """Return the attributes of each stage that differ from their defaults."""
    decision = decide(name, classes, parse_rules(quant_cfg))
    return [stage.model_dump(exclude_defaults=True) for stage in decision.stages]


def is_on(quant_cfg: Any, name: str = WEIGHT, classes: Collection[str] = ("Linear", "nn.Linear")) -> bool:
    return decide(name, classes, parse_rules(quant_cfg)).enabled


def entry(pattern: str, cfg: Any = None, **keys: Any) -> dict[str, Any]:
    """An entry of the ordered list."""
    return {"quantizer_name": pattern, **({} if cfg is None else {"cfg": copy.deepcopy(cfg)}), **keys}


def weights(cfg: Any, *more: dict[str, Any], algorithm: Any = "max") -> dict[str, Any]:
    """A config that turns on weights alone, and further entries."""
    return {"quant_cfg": [OFF, entry("*weight_quantizer", cfg), *more], "algorithm": algorithm}
