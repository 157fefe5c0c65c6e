"""The algorithm `mse`: the amax of each weight with the least squared error of rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

import octavo
from helpers.calibration_models import calibrated_state, quantizer_config, rows, two_layers
from octavo.core import ops
from octavo.core.calibration.mse import Mse, best_amax
from octavo.core.errors import CalibrationError
from octavo.core.formats import PerBlock, QuantSpec, fake_quantize
from octavo.core.quantizers import TensorQuantizer

INT8 = {"num_bits": 8, "axis": 0}
INT4 = {"num_bits": 4, "axis": 0}
FP8: dict[str, Any] = {"num_bits": (4, 3), "axis": None}
STATIC_NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
# What ModelOpt 0.47 finds for the weight of `curve`, `algorithm={"method": "mse"}`.
PEER: list[tuple[torch.dtype, dict[str, Any], list[float]]] = [
    (torch.float32, INT8, [1.0370060205459595, 2.078890562057495, 3.1162304878234863, 5.197281837463379]),
    (torch.float32, FP8, [13.585297584533691]),
    (torch.float32, INT4, [0.9385560750961304, 1.8815275430679321, 2.820385694503784, 5.690694332122803]),
    (
        torch.float32,
        {"num_bits": 4, "block_sizes": {-1: 16}},
        [
            0.9374496936798096, 1.1354559659957886, 1.8815275430679321, 1.7528585195541382,
            2.820385694503784, 2.6297061443328857, 5.615950584411621, 5.197281837463379,
        ],
    ),
    (torch.bfloat16, INT8, [1.0390625, 2.078125, 3.421875, 5.1875]),
    (torch.bfloat16, FP8, [13.5625]),
    (torch.bfloat16, INT4, [0.9375, 1.8828125, 2.828125, 4.71875]),
]  # fmt: skip


def mse_config(weights: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**quantizer_config(weight_quantizer=weights), "algorithm": {"method": "mse", **options}}


def curve(dtype: torch.dtype) -> nn.Sequential:
    """One layer whose weight has no random numbers in it."""
    model = nn.Sequential(nn.Linear(32, 4, bias=False))
    i = torch.arange(128.0).reshape(4, 32)
    with torch.no_grad():
        model[0].weight.copy_(torch.sin(i * i) ** 3 * torch.tensor([1.0, 2.0, 3.0, 5.0])[:, None])
    return model.to(dtype)


@pytest.mark.parametrize(("dtype", "weights", "expected"), PEER, ids=str)
def test_amax_equals_the_peers(dtype: torch.dtype, weights: dict[str, Any], expected: list[float]) -> None:
    model = octavo.quantize(curve(dtype), mse_config(weights), quiet=True)

    found = torch.tensor(calibrated_state(model)["0.weight_quantizer.amax"])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=3e-7, atol=0)


def test_options_choose_the_candidates() -> None:
    config = mse_config(INT4, start_multiplier=0.5, stop_multiplier=0.75, step_size=0.25)
    model = octavo.quantize(two_layers(), config, quiet=True)

    weight = model[0].weight.detach()  # type: ignore[index]
    amax = weight.abs().amax(1)
    candidates = torch.stack([amax * 0.5, amax * 0.75])
    spec = model[0].weight_quantizer.spec  # type: ignore[index]
    errors = torch.stack([(fake_quantize(weight, [c], spec) - weight).square().sum(1) for c in candidates])
    expected = torch.where(errors[1] < errors[0], candidates[1], candidates[0])
    assert torch.equal(model[0].weight_quantizer.amax, expected)  # type: ignore[index]


def test_the_sweep_of_fp8_scales_finds_the_best_scale_of_every_block() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) ** 3
    quantizer = TensorQuantizer(STATIC_NVFP4, weight.shape)
    amax, global_amax = ops.amax(weight, STATIC_NVFP4), weight.abs().max()
    quantizer.set_state(amax=amax, global_amax=global_amax)

    def errors(tried: Tensor) -> Tensor:
        rounded = fake_quantize(weight, [tried, global_amax], STATIC_NVFP4)
        return (rounded - weight).double().square().reshape(8, 4, 16).sum(-1)

    found = errors(best_amax(weight, quantizer, Mse(fp8_scale_sweep=True)))

    scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / 448
    for scale in scales:
        assert (found <= errors((global_amax * scale).expand(8, 4)) * (1 + 1e-6)).all()
    assert found.sum() < errors(amax).sum()


def test_the_sweep_leaves_other_weights_and_the_tensors_scale_alone() -> None:
    swept = octavo.quantize(two_layers(), octavo.NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG, [rows()], quiet=True)
    plain = octavo.quantize(
        two_layers(), {**octavo.NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG, "algorithm": "max"}, [rows()], quiet=True
    )
    int8 = octavo.quantize(two_layers(), mse_config(INT8, fp8_scale_sweep=True), quiet=True)

    found, expected = calibrated_state(swept), calibrated_state(plain)
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == {
        "0.weight_quantizer.amax",
        "1.weight_quantizer.amax",
    }
    assert calibrated_state(int8) == calibrated_state(
        octavo.quantize(two_layers(), quantizer_config(weight_quantizer=INT8), quiet=True)
    )


def test_a_constant_amax_and_quantizers_in_turn_are_not_searched() -> None:
    pinned = octavo.quantize(two_layers(), mse_config({**INT8, "constant_amax": 3.0}), quiet=True)
    config = mse_config(INT8)
    config["quant_cfg"][1]["cfg"] = [{"num_bits": 4, "block_sizes": {-1: 16}}, FP8]
    chain = octavo.quantize(two_layers(), config, quiet=True)
    max_chain = octavo.quantize(two_layers(), {**config, "algorithm": "max"}, quiet=True)

    assert set(calibrated_state(pinned)["0.weight_quantizer.amax"]) == {3.0}
    assert calibrated_state(chain) == calibrated_state(max_chain)


def test_calibrating_again_searches_what_max_left_and_nothing_twice() -> None:
    config = quantizer_config(weight_quantizer=INT4, input_quantizer=FP8)
    model = octavo.quantize(two_layers(), config, [rows()], quiet=True)
    at_once = octavo.quantize(two_layers(), {**config, "algorithm": "mse"}, [rows()], quiet=True)

    octavo.calibrate(model, "mse", quiet=True)
    searched = calibrated_state(model)
    octavo.calibrate(model, {"method": "mse", "stop_multiplier": 1.0}, quiet=True)

    assert searched == calibrated_state(at_once) == calibrated_state(model)


def test_offloaded_weights_are_refused_by_name() -> None:
    model = octavo.quantize(two_layers(), quantizer_config(weight_quantizer=INT8), quiet=True)
    cpu_offload(model, execution_device="cpu")

    with pytest.raises(CalibrationError, match=r"2 are offloaded: 0\.weight_quantizer, 1\.weight_quantizer;"):
        octavo.calibrate(model, "mse", quiet=True)
