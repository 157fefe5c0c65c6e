"""Folded scales leave every function as it was."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, relu, rms_norm, silu

from octavo.core.calibration.solvers.folding import (
    averaged,
    columns_rescaled,
    norm_scaled,
    rows_scaled,
    tied_to_heads,
    value_rows,
)
from octavo.core.calibration.solvers.smoothing import divided_columns
from octavo.core.errors import ShapeError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("added_one", [False, True])
def test_into_a_norm(added_one: bool) -> None:
    x, norm, weight, scale = torch.randn(5, 8), torch.randn(8), torch.randn(3, 8), torch.rand(8) + 0.5

    def through(norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (8,)) * (norm + added_one) @ weight.T

    folded = through(norm_scaled(norm, scale, added_one), divided_columns(weight, scale))
    torch.testing.assert_close(folded, through(norm, weight))


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", relu), ("relu2", lambda x: relu(x).square()), ("linear", lambda x: x)],
)
def test_into_the_rows_before_a_homogeneous_activation(activation: str, function) -> None:  # type: ignore[no-untyped-def]
    x, up, bias, down = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6), torch.randn(3, 6)
    scale = torch.rand(6) + 0.5

    rows, bias_rows = rows_scaled(up, scale, activation), rows_scaled(bias, scale, activation)

    assert rows is not None
    assert bias_rows is not None
    folded = function(linear(x, rows, bias_rows)) @ divided_columns(down, scale).T
    torch.testing.assert_close(folded, function(linear(x, up, bias)) @ down.T)


def test_into_up_proj_beside_a_gate() -> None:
    x, gate, up, down = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6, 8), torch.randn(3, 6)
    scale = torch.rand(6) + 0.5
    rows = rows_scaled(up, scale)

    assert rows is not None
    folded = silu(x @ gate.T) * (x @ rows.T) @ divided_columns(down, scale).T
    torch.testing.assert_close(folded, silu(x @ gate.T) * (x @ up.T) @ down.T)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_not_through_other_activations(activation: str) -> None:
    assert rows_scaled(torch.ones(2, 2), torch.ones(2), activation) is None


def test_into_v_proj_of_grouped_queries() -> None:
    heads, kv_heads, head_dim = 4, 2, 3
    attention, value, output = (
        torch.rand(heads, 5, 5),
        torch.randn(kv_heads * head_dim, 8),
        torch.randn(7, 12),
    )
    x, scale = torch.randn(5, 8), torch.rand(12) + 0.5
    tied = tied_to_heads(scale, kv_heads, head_dim)

    def through(value: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        states = (x @ value.T).view(5, kv_heads, head_dim).repeat_interleave(heads // kv_heads, 1)
        return (attention @ states.transpose(0, 1)).transpose(0, 1).reshape(5, -1) @ output.T

    rows = rows_scaled(value, value_rows(tied, kv_heads, head_dim))
    assert rows is not None
    torch.testing.assert_close(through(rows, divided_columns(output, tied)), through(value, output))
    assert tied[0] == (scale[0] + scale[3]) / 2
    assert tied_to_heads(scale, kv_heads, head_dim, largest=True)[3] == max(scale[0], scale[3])


def test_scales_of_one_group_must_be_tied() -> None:
    with pytest.raises(ShapeError, match="share one of 2 KV heads have different scales"):
        value_rows(torch.arange(1.0, 9.0), 2, 2)


def test_inputs_that_are_no_whole_groups() -> None:
    with pytest.raises(ShapeError, match=r"shape \(10,\), expected a multiple of 2 KV heads · 3"):
        tied_to_heads(torch.ones(10), 2, 3)


def test_a_group_takes_the_mean_of_its_scales() -> None:
    weight, old, other = torch.randn(3, 4).bfloat16(), torch.rand(4).bfloat16(), torch.rand(4).bfloat16()
    new = averaged([old, other])

    assert new.dtype == torch.bfloat16
    assert torch.equal(columns_rescaled(weight, old, old), weight)
    torch.testing.assert_close(columns_rescaled(weight, old, new) * new, weight * old, rtol=0.03, atol=0.01)
