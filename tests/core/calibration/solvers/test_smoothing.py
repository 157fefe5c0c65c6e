"""SmoothQuant's scales: the peer's rule step by step, and the searched α."""

from __future__ import annotations

import math

import torch

from octavo.core.calibration.solvers.folding import tied_to_heads, value_rows
from octavo.core.calibration.solvers.smoothing import (
    balanced_scale,
    divided_columns,
    search_smoothing,
    smoothed_amax,
    smoothquant_scale,
)
from octavo.core.formats import PerChannel, PerTensor, QuantSpec

INT8_WEIGHT, INT8_INPUT = QuantSpec("int8", PerChannel(0)), QuantSpec("int8", PerTensor())


def outlier_layer() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    x[:, 3] *= 100
    return torch.randn(16, 32), x


def test_scale_of_each_kind_of_channel() -> None:
    weight = torch.tensor([[4.0, 1.0, 0.0, 2.0, 0.0], [-9.0, 0.5, 0.0, 1.0, 0.0]])
    act_amax = torch.tensor([4.0, 0.0, 2.0, 1e12, 0.0])

    # The third and the fifth scale are 0 and 0/0; the second is infinite, the fourth too small.
    expected = [3 / 2, 1e4, 1e-4, 1e-4, 1.0]
    torch.testing.assert_close(smoothquant_scale(act_amax, weight, 0.5), torch.tensor(expected))


def test_channels_without_input_get_one_where_a_scale_vanishes() -> None:
    weight = torch.tensor([[4.0, 0.0, 1.0]])
    act_amax = torch.tensor([0.0, 2.0, 4.0])

    assert smoothquant_scale(act_amax, weight, 0.5).tolist() == [1.0, torch.tensor(1e-4).item(), 0.5]


def test_alpha_1_brings_every_channel_to_one_and_leaves_the_function() -> None:
    weight, x = outlier_layer()
    act_amax = x.abs().amax(0)

    scale = smoothquant_scale(act_amax, weight.bfloat16())

    assert smoothed_amax(act_amax, scale, torch.bfloat16) == 1.0
    torch.testing.assert_close(
        (x * scale) @ divided_columns(weight, scale).T, x @ weight.T, rtol=1e-4, atol=1e-3
    )


def test_balanced_scale_has_a_geometric_mean_of_one_and_spares_dead_channels() -> None:
    scale = balanced_scale(torch.tensor([1.0, 16.0, 0.0]), torch.tensor([1.0, 1.0, 5.0]), 0.5)

    assert scale.tolist() == [2.0, 0.5, 1.0]


def test_search_equals_a_brute_force_one_and_never_loses() -> None:
    weight, x = outlier_layer()
    act_amax = x.abs().amax(0)

    found = search_smoothing([weight[:8], weight[8:]], act_amax, x, INT8_WEIGHT, INT8_INPUT)

    errors = {}
    for alpha in [step / 10 for step in range(11)]:
        scale = balanced_scale(act_amax, weight.abs().amax(0), alpha)
        columns, inputs = weight / scale, x * scale
        steps, step = columns.abs().amax(1, keepdim=True) / 127, inputs.abs().max() / 127
        out = (inputs / step).round() * step @ ((columns / steps).round() * steps).T
        errors[alpha] = (out - x @ weight.T).square().sum().item()
    assert found.alpha == min(errors, key=errors.__getitem__)
    assert math.isclose(found.error, min(errors.values()), rel_tol=1e-2)
    assert found.error < 0.2 * found.plain_error


def test_no_smoothing_is_kept_where_it_is_best() -> None:
    weight, x = outlier_layer()

    found = search_smoothing([weight], x.abs().amax(0), x, INT8_WEIGHT, INT8_INPUT, alphas=())

    assert found.alpha is None
    assert found.error == found.plain_error
    assert torch.equal(found.pre_quant_scale, torch.ones(32))


def test_search_without_rounding_weights_balances_root_mean_squares() -> None:
    weight, x = outlier_layer()
    rms = x.square().mean(0).sqrt()

    found = search_smoothing([weight], x.abs().amax(0), x, None, INT8_INPUT, rms, alphas=[1.0])

    scaled = x * found.pre_quant_scale
    step = scaled.abs().max() / 127
    error = (
        (((scaled / step).round() * step - scaled) / found.pre_quant_scale @ weight.T).square().sum().item()
    )
    assert found.alpha == 1.0
    assert math.isclose(found.error, error, rel_tol=1e-2)
    torch.testing.assert_close(found.pre_quant_scale, 1 / rms / (1 / rms).log().mean().exp())


def test_tied_magnitudes_give_scales_that_fold() -> None:
    weight, x = outlier_layer()

    def tie(magnitudes: torch.Tensor) -> torch.Tensor:
        return tied_to_heads(magnitudes, num_kv_heads=2, head_dim=4, largest=True)

    found = search_smoothing([weight], x.abs().amax(0), x, INT8_WEIGHT, INT8_INPUT, tie=tie)

    assert found.alpha is not None
    assert value_rows(found.pre_quant_scale, 2, 4).shape == (8,)
