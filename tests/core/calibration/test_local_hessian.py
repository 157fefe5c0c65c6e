"""The algorithm `local_hessian` against a plain loop over blocks and scales, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import rows, two_layers
from octavo.core.formats import fake_quantize

STATIC_NVFP4: dict[str, Any] = {
    "num_bits": (2, 1), "block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3)},
}  # fmt: skip
INT8 = {"num_bits": 8, "axis": 0}


def solved(weights: dict[str, Any], data: Tensor, **options: Any) -> Any:
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
    ]
    algorithm = {"method": "local_hessian", **options}
    return octavo.quantize(two_layers(), {"quant_cfg": rules, "algorithm": algorithm}, [data], quiet=True)


def tried(layer: Any, options: dict[str, Any]) -> list[Tensor]:
    weight, quantizer = layer.weight.detach(), layer.weight_quantizer
    if not options:
        scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / 448
        return [(quantizer.global_amax * scale).expand(quantizer.amax.shape) for scale in scales]
    largest = weight.reshape(*quantizer.amax.shape, -1).abs().amax(-1)
    return [largest * multiple for multiple in (0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        (STATIC_NVFP4, {}),
        (
            INT8,
            {"fp8_scale_sweep": False, "start_multiplier": 0.5, "stop_multiplier": 1.0, "step_size": 0.25},
        ),
    ],
    ids=["the sweep", "multiples"],
)
def test_each_scale_has_the_least_local_error_of_all(
    weights: dict[str, Any], options: dict[str, Any]
) -> None:
    data = rows(count=64) @ rows(seed=1, count=32)
    layer = solved(weights, data, **options)[0]
    weight, quantizer = layer.weight.detach(), layer.weight_quantizer

    def errors(amax: Tensor) -> Tensor:
        state = {**quantizer.named_state(), "amax": amax}
        change = (fake_quantize(weight, list(state.values()), quantizer.spec) - weight).double()
        by_block = torch.stack(
            [(change[:, i : i + 16] @ data[:, i : i + 16].T.double()).square().sum(1) for i in (0, 16)], 1
        )
        return by_block if amax.dim() == 2 else by_block.sum(1)

    least = torch.stack([errors(amax) for amax in tried(layer, options)]).amin(0)
    torch.testing.assert_close(errors(quantizer.amax), least, rtol=1e-4, atol=1e-6)


def test_what_it_leaves_alone_is_reported() -> None:
    dynamic = {**STATIC_NVFP4, "block_sizes": {**STATIC_NVFP4["block_sizes"], "type": "dynamic"}}
    cases = [
        (dynamic, {}, "scales of max: local_hessian searches static scales, found e2m1 block{-1:16} e4m3·global"),
        (INT8, {}, "scales of max: fp8_scale_sweep is for static NVFP4, found int8 channel0"),
        ({**INT8, "constant_amax": 3.0}, {"fp8_scale_sweep": False}, "the scales there were: they are not those of"),
    ]  # fmt: skip
    for weights, options, reason in cases:
        model = solved(weights, rows(count=8), **options)
        row = octavo.history(model)[-1].state["report"]["weights"][0]
        assert row["fallback"].startswith(reason)


def test_a_layer_without_tokens_is_searched_as_mse_does() -> None:
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)  # type: ignore[no-any-return]

    found = []
    for method in ("local_hessian", "mse"):
        torch.manual_seed(0)
        rules = [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "1.weight_quantizer", "cfg": STATIC_NVFP4},
        ]
        config = {"quant_cfg": rules, "algorithm": {"method": method, "fp8_scale_sweep": True}}
        model = octavo.quantize(Skips(nn.Linear(32, 32), nn.Linear(32, 16)), config, [rows()], quiet=True)
        found.append(model[1].weight_quantizer.amax)  # type: ignore[index]

    assert torch.equal(*found)
