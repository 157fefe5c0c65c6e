"""Norms, poolings and LeakyReLU: their inputs are quantized where the config says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.modules_layers import W8A8, normal
from octavo.core import formats
from octavo.core.errors import ConfigError
from octavo.core.formats import QuantSpec
from octavo.core.modules import class_key, registry
from octavo.core.modules.unweighted import QuantUnweighted

INT8 = QuantSpec("int8")
X = {dims: normal(2, 4, *(8,) * dims) for dims in (1, 2, 3)}
CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "LayerNorm": (nn.LayerNorm((4, 8)), X[1]),
    "LeakyReLU": (nn.LeakyReLU(), X[1]),
    "MaxPool2d with indices": (nn.MaxPool2d(2, return_indices=True), X[2]),
    **{
        f"{kind}{dims}d": (getattr(nn, f"{kind}{dims}d")(size), X[dims])
        for kind, size in (
            ("BatchNorm", 4), ("InstanceNorm", 4), ("AdaptiveAvgPool", 2), ("AvgPool", 2), ("MaxPool", 2),
        )
        for dims in (1, 2, 3)
    },
}  # fmt: skip
NETWORK = (
    nn.Conv2d(4, 4, 3),
    nn.BatchNorm2d(4),
    nn.LeakyReLU(),
    nn.InstanceNorm2d(4),
    nn.MaxPool2d(2),
    nn.LayerNorm((4, 3, 3)),
)


def fake_quantized(x: Tensor) -> Tensor:
    return formats.fake_quantize(x, [x.abs().max()], INT8)


@pytest.mark.parametrize("case", CASES)
def test_the_input_is_quantized(case: str) -> None:
    layer, x = CASES[case]
    expected: Any = copy.deepcopy(layer)(fake_quantized(x))
    model = octavo.quantize(nn.Sequential(copy.deepcopy(layer)), W8A8, [x], quiet=True)
    model[0].load_state_dict(layer.state_dict(), strict=False)  # calibration moved a BatchNorm's statistics
    output = model(x)

    if isinstance(expected, tuple):
        assert torch.equal(output[1], expected[1])
        output, expected = output[0], expected[0]
    assert isinstance(model[0], QuantUnweighted)
    assert torch.equal(output, expected)
    assert not torch.equal(expected, _first(copy.deepcopy(layer)(x)))
    assert type(octavo.unquantize(model)[0]) is type(layer)


def test_presets_quantize_what_modelopts_do() -> None:
    """As ModelOpt 0.47 lists them: inputs of poolings, InstanceNorm and LayerNorm; not BatchNorm, not LeakyReLU."""
    plan = octavo.plan(nn.Sequential(*copy.deepcopy(NETWORK)), "INT8_DEFAULT_CFG")

    assert {layer.site.name: [*layer.quantizers] for layer in plan.layers if layer.is_quantized} == {
        "0": ["input_quantizer", "weight_quantizer"],
        "3": ["input_quantizer"],
        "4": ["input_quantizer"],
        "5": ["input_quantizer"],
    }
    assert plan.other_quantizers() == {f"{i}.input_quantizer": (INT8,) for i in (3, 4, 5)}
    assert "  3 x input_quantizer int8 tensor" in plan.summary().splitlines()


def test_norms_that_a_fused_layer_never_calls_are_left_out() -> None:
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    assert "norm1" not in {layer.site.name for layer in octavo.plan(encoder, W8A8).layers}


def test_a_mixin_may_stand_for_layers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class QuantNorm(QuantUnweighted, nn.GroupNorm):
        """That of one layer, so no mixin."""

    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    with pytest.raises(ConfigError, match=f"QuantNorm must be a subclass of {class_key(Doubled)}"):
        octavo.register(Doubled, QuantNorm)
    octavo.register(Doubled, QuantUnweighted)
    model = octavo.quantize(nn.Sequential(Doubled()), W8A8, [X[1]], quiet=True)

    assert type(model[0]).__name__ == "QuantDoubled"
    assert torch.equal(model(X[1]), 2 * fake_quantized(X[1]))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
