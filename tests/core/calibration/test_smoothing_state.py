"""Smoothing one layer: factors, their rounding, and the maxima that go with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.calibration.smoothing_state import smooth
from octavo.core.errors import CalibrationError
from octavo.core.modules.linear import QuantLinear

FACTOR = torch.linspace(0.3, 2.0, 128)
AMAX = torch.linspace(4.0, 1.0, 128)
X = torch.randn(6, 128, generator=torch.Generator().manual_seed(0)).bfloat16()


def linear(preset: str, dtype: torch.dtype = torch.bfloat16) -> QuantLinear:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64, bias=False)).to(dtype)
    config = {**octavo.merge_configs(preset), "algorithm": "max"}
    layer = octavo.quantize(model, config, [X.to(dtype)], quiet=True)[0]
    assert isinstance(layer, QuantLinear)
    return layer


def test_the_weight_is_divided_by_the_exact_factor_and_rounded_once() -> None:
    layer = linear("INT8_SMOOTHQUANT_CFG")
    before = layer.weight.detach().clone()
    smooth("0", layer, FACTOR, AMAX)
    expected = (before.float() * (1 / FACTOR)).bfloat16()

    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight_quantizer.scaled(layer.weight), expected)
    assert torch.equal(layer.weight_quantizer.amax.flatten(), expected.abs().amax(1).float())
    assert torch.equal(layer.input_quantizer.pre_quant_scale, FACTOR.bfloat16().float())
    assert layer.input_quantizer.amax.item() == (AMAX.bfloat16() * FACTOR).amax().bfloat16().item()


def test_every_stage_of_a_weight_sees_the_smoothed_one() -> None:
    layer = linear("W4A8_AWQ_BETA_CFG")
    smooth("0", layer, FACTOR, AMAX)
    first, second = layer.weight_quantizer.stages()
    values = first.scaled(layer.weight).float()

    assert torch.equal(first.amax.flatten(), values.abs().amax(1))
    assert second.amax.item() == values.abs().max().item()
    assert second.pre_quant_scale is None


def test_a_dynamic_input_needs_no_maxima_and_the_product_stays() -> None:
    layer = linear("INT4_AWQ_CFG", torch.float32)
    layer.weight_quantizer.enabled = False
    before = layer(X.float())
    smooth("0", layer, FACTOR)

    assert torch.allclose(layer(X.float()), before, atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "amax", "message"),
    [
        (FACTOR[:5], AMAX, r"^here: .* 128 input channels, found shape \(5,\)$"),
        (FACTOR - 0.3, AMAX, r"^here: .* positive and finite, found 0\.0$"),
        (FACTOR * torch.inf, AMAX, "found inf$"),
        (FACTOR, None, "^here: its input has a static scale.*maxima of its 128 channels$"),
    ],
)
def test_refusals(factor: Tensor, amax: Tensor | None, message: str) -> None:
    layer = linear("INT8_SMOOTHQUANT_CFG")

    with pytest.raises(CalibrationError, match=message):
        smooth("here", layer, factor, amax)
    assert layer.weight_quantizer.pre_quant_scale is None
    assert layer.input_quantizer.pre_quant_scale is None
