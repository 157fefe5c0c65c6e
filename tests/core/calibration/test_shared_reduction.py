"""Layers that read one tensor reduce it once; a tensor that changed in between is reduced again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import FP8, quantizer_config, rows
from helpers.tiny import tiny_llama, token_batches
from octavo.core import ops
from octavo.core.formats import QuantSpec

INPUTS_ONLY = quantizer_config(input_quantizer=FP8)


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """Count calls of the real `ops.amax`, by the shape that it reduces."""
    counted: Counter[tuple[int, ...]] = Counter()
    real = ops.amax

    def amax(x: Tensor, spec: QuantSpec) -> Tensor:
        counted[tuple(x.shape)] += 1
        return real(x, spec)

    monkeypatch.setattr(ops, "amax", amax)
    return counted


def test_a_block_of_a_decoder_reduces_four_tensors_and_not_seven(
    reductions: Counter[tuple[int, ...]],
) -> None:
    octavo.quantize(tiny_llama(), "FP8_DEFAULT_CFG", token_batches(3), quiet=True)

    on_activations = {shape: count for shape, count in reductions.items() if len(shape) == 3}
    # Two blocks, three batches: q/k/v, o and gate/up read width 128, down reads width 256.
    assert on_activations == {(2, 24, 128): 2 * 3 * 3, (2, 24, 256): 2 * 3}


class Siblings(nn.Module):
    """Two layers that read one tensor, which `between` may change in place."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y: Tensor = self.first(x)
        x = self.between(x)
        return y + self.second(x)


def double(x: Tensor) -> Tensor:
    return x.mul_(2)


def double_through_a_view(x: Tensor) -> Tensor:
    x[:, :16].mul_(2)
    x.view(-1, 2, 16)[:, 1].mul_(2)
    return x


@pytest.mark.parametrize(("between", "factor", "count"), [
    (lambda x: x, 1, 1), (double, 2, 2), (double_through_a_view, 2, 2), (lambda x: x * 2, 2, 2),
])  # fmt: skip
def test_a_change_between_two_layers_is_not_missed(
    between: Any, factor: float, count: int, reductions: Counter[tuple[int, ...]]
) -> None:
    model = octavo.quantize(Siblings(between), INPUTS_ONLY, [rows()], quiet=True)

    assert float(model.first.input_quantizer.amax) == float(rows().abs().max())  # type: ignore[union-attr, arg-type]
    assert float(model.second.input_quantizer.amax) == factor * float(rows().abs().max())  # type: ignore[union-attr, arg-type]
    assert reductions == {(4, 32): count}


def test_layers_with_different_formats_do_not_share(reductions: Counter[tuple[int, ...]]) -> None:
    config = quantizer_config(input_quantizer=FP8)
    config["quant_cfg"].append(
        {"quantizer_name": "second.input_quantizer", "cfg": {"num_bits": 8, "axis": -1}}
    )

    model = octavo.quantize(Siblings(lambda x: x), config, [rows()], quiet=True)

    assert reductions == {(4, 32): 2}
    assert torch.equal(model.second.input_quantizer.amax, rows().abs().amax(0))  # type: ignore[union-attr, arg-type]


def test_a_tensor_that_died_is_not_taken_for_the_next_one() -> None:
    """Equal ids: each batch is freed before the next is made, often at the same address."""

    def loop(model: nn.Module) -> None:
        for seed in range(20):
            model(rows(seed) * (seed + 1))

    model = octavo.quantize(nn.Sequential(nn.Linear(32, 32)), INPUTS_ONLY, loop, quiet=True)

    expected = max(float((rows(seed) * (seed + 1)).abs().max()) for seed in range(20))
    assert float(model[0].input_quantizer.amax) == expected  # type: ignore[index]
