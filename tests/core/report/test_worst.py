"""The weights that lost most, and entries that spare their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.core.modules import quantized_layers
from octavo.core.report.weight_rows import depth_of
from octavo.core.report.worst import sparing_entries, worst_weights


def row(weight: str, own: float | None, output: float | None) -> dict[str, Any]:
    return {"weight": weight, "weight_sqnr_db": own, "output_sqnr_db": output}


def test_outputs_decide_where_all_are_known() -> None:
    rows = [row("a.weight", 30.0, 10.0), row("b.weight", 20.0, 15.0), row("c.weight", None, None)]

    assert [found["weight"] for found in worst_weights({"weights": rows}, 2)] == ["a.weight", "b.weight"]
    rows[0]["output_sqnr_db"] = None
    assert [found["weight"] for found in worst_weights({"weights": rows}, 5)] == ["b.weight", "a.weight"]


def test_a_stack_of_experts_is_spared_as_a_whole() -> None:
    rows = [row(f"layers.0.experts.{name}", 1.0, None) for name in ("down_proj[3]", "up_proj[1]")]

    assert sparing_entries(rows) == [{"quantizer_name": "layers.0.experts.*", "enable": False}]


@pytest.mark.parametrize(("weight", "left"), [("0.weight", ["1"]), ("1.weight", ["0"])])
def test_what_is_spared_is_not_quantized(weight: str, left: list[str]) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    config = octavo.FP8_DEFAULT_CFG
    entries = sparing_entries([row(weight, 1.0, None)])

    spared = {**config, "quant_cfg": [*config["quant_cfg"], *entries]}
    octavo.quantize(model, spared, [torch.ones(1, 16)], quiet=True)

    assert [name for name, _ in quantized_layers(model)] == left


def test_a_model_that_is_one_layer() -> None:
    assert sparing_entries([row("weight", 1.0, None)]) == [{"quantizer_name": "*", "enable": False}]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.layers.12.mlp.experts.3.up_proj.weight", 12),
        ("0.weight", 0),
        ("experts.up_proj[3]", None),
        ("conv1.weight", None),
    ],
)
def test_the_first_number_of_a_name_is_its_depth(name: str, depth: int | None) -> None:
    assert depth_of(name) == depth
