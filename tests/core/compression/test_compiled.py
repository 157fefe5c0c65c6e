"""Compressed models compile as one graph: packed layers, and views of their weights made inside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import octavo
from helpers.ops_cases import normal
from helpers.ops_models import PRESETS, quantized_feed_forward

X = normal(3, 5, 64)


@pytest.mark.parametrize("preset", [*PRESETS, "chained"])
def test_output_and_gradient_are_those_of_eager(preset: str) -> None:
    model = octavo.compress(quantized_feed_forward(preset), dialect="neutral", quiet=True)
    results = []
    for function in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        x = X.clone().requires_grad_()
        y = function(x)
        y.square().sum().backward()
        results.append((y, x.grad))

    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_view_may_be_taken_inside_the_graph() -> None:
    model = octavo.compress(quantized_feed_forward("NVFP4_DEFAULT_CFG"), dialect="neutral", quiet=True)

    def product(x: Tensor) -> Tensor:
        return linear(x, model.up.weight).relu()

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")

    assert torch.equal(compiled(X), product(X))
