"""Quantized nn.Embedding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding

import octavo
from helpers.modules_layers import WEIGHT_ONLY
from octavo.core import formats
from octavo.core.formats import PerChannel, QuantSpec

ROWS = QuantSpec("int8", PerChannel(0))
IDS = torch.tensor([[0, 3, 3], [9, 1, 0]])


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"max_norm": 1.0}], ids=str)
def test_rows_of_the_quantized_table(options: dict[str, float]) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(10, 8, **options)
    weight = layer.weight.data
    table = formats.fake_quantize(weight, [formats.compute_amax(weight, ROWS)], ROWS)
    expected = embedding(IDS, table, **options)

    model = octavo.quantize(nn.Sequential(copy.deepcopy(layer)), WEIGHT_ONLY, quiet=True)
    output = model(IDS)
    output.sum().backward()

    assert torch.equal(output, expected)
    assert list(model[0].quantizers()) == ["weight_quantizer", "output_quantizer"]  # indices have no format
    used = model[0].weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == ([0, 1, 9] if "padding_idx" in options else [0, 1, 3, 9])
    assert type(octavo.unquantize(model)[0]) is nn.Embedding


def test_presets_leave_tables_alone() -> None:
    plan = octavo.plan(nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8)), "INT8_DEFAULT_CFG")

    assert {tensor.name: tensor.reason for tensor in plan.tensors if len(tensor.shape) > 1} == {
        "0.weight": "turned off by '*' in nn.Embedding",
        "1.weight": "",
    }
