"""AWQ from statistics against true forward passes, as the peer searches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from octavo.core.calibration.solvers.awq import (
    ScaledRounding,
    alphas,
    awq_scale,
    block_length,
    relative_columns,
    search_awq,
)
from octavo.core.calibration.solvers.grid import amax_state
from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec, fake_quantize

INT4 = QuantSpec("int4", PerBlock(((-1, 16),)))


def layer(dtype: torch.dtype, seed: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(seed)
    loud = torch.exp(1.5 * torch.randn(40))
    return (torch.randn(24, 40) * torch.rand(40)).to(dtype), [torch.randn(64, 40) * loud for _ in range(3)]


def int4(weight: Tensor) -> Tensor:
    """Round blocks of 16, the last one short, to amax / 7."""
    out = torch.empty_like(weight)
    for start in range(0, weight.shape[1], 16):
        block = weight[:, start : start + 16].float()
        inverse = torch.tensor(7.0) / block.abs().amax(1, keepdim=True)
        out[:, start : start + 16] = ((block * inverse).round() * (1 / inverse)).to(weight.dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_alpha_equals_that_of_forward_passes(dtype: torch.dtype, seed: int) -> None:
    weight, batches = layer(dtype, seed)
    act_mean = torch.stack([x.abs().mean(0) for x in batches]).mean(0)
    x = torch.cat(batches)

    found = search_awq(weight, act_mean, InputProduct(x.T @ x), INT4)

    columns, losses = relative_columns(weight, 16), {}
    for alpha in alphas():
        scale = awq_scale(act_mean, columns, alpha)
        rounded, inverse = int4(weight * scale.to(dtype)).float(), (1 / scale).to(dtype).float()
        outputs = [(x * inverse) @ rounded.T - x @ weight.float().T for x in batches]
        losses[alpha] = sum(out.square().mean().item() for out in outputs)
    assert found.alpha == min(losses, key=losses.__getitem__)
    assert math.isclose(found.errors[found.alpha], losses[found.alpha] * 64 * 24, rel_tol=1e-3)
    assert torch.equal(found.pre_quant_scale, 1 / awq_scale(act_mean, columns, found.alpha))


def test_relative_columns_by_block_and_by_row() -> None:
    weight = torch.tensor([[1.0, -2.0, 4.0], [3.0, 0.0, -5.0]])

    assert relative_columns(weight, 2).tolist() == [0.75, 0.5, 1.0]
    torch.testing.assert_close(relative_columns(weight, None), torch.tensor([0.425, 0.25, 1.0]))


def test_scale_is_clamped_and_centered() -> None:
    scale = awq_scale(torch.tensor([0.0, 1.0, 100.0]), torch.ones(3), 1.0)

    torch.testing.assert_close(scale, torch.tensor([1e-3, 1e1, 1e3]))


def test_there_are_eleven_alphas() -> None:
    assert len(alphas()) == 11
    assert alphas()[1] == torch.tensor(0.1).item()


def large_layer(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loud = torch.exp(1.5 * torch.randn(48, generator=generator))
    rows = torch.exp(torch.randn(900, 1, generator=generator))
    weight = torch.randn(900, 48, generator=generator) * torch.rand(48, generator=generator) * rows
    return weight, torch.randn(64, 48, generator=generator) * loud


FORMATS = [
    INT4,
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0),
    QuantSpec("int4", PerChannel(0)),
    QuantSpec("int4", PerTensor()),
    QuantSpec("int4", PerBlock(((-1, 16), (-2, 16)))),
]


@pytest.mark.parametrize("spec", FORMATS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_many_rows_have_the_alpha_of_all_of_them(spec: QuantSpec, seed: int, as_tokens: bool) -> None:
    weight, x = large_layer(seed)
    act_mean = x.abs().mean(0)

    found = search_awq(
        weight, act_mean, InputProduct(None, [x]) if as_tokens else InputProduct(x.T @ x), spec
    )

    columns, errors = relative_columns(weight, block_length(spec)), {}
    for alpha in alphas():
        scale = awq_scale(act_mean, columns, alpha)
        scaled = weight * scale
        state = amax_state(scaled, spec)
        rounded = fake_quantize(scaled, [state[name] for name in spec.state], spec) * (1 / scale)
        errors[alpha] = (x.double() @ (rounded - weight).double().T).square().sum().item()
    assert found.alpha == min(errors, key=errors.__getitem__)
    assert all(math.isclose(found.errors[alpha], errors[alpha], rel_tol=0.3) for alpha in errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", FORMATS[:4], ids=str)
def test_rows_are_rounded_as_in_the_whole_weight(spec: QuantSpec, dtype: torch.dtype) -> None:
    weight, scale = large_layer(0)[0].to(dtype), torch.linspace(0.5, 2, 48)
    rows = torch.tensor([899, 3, 3, 250])

    found = ScaledRounding(weight, spec, scale, weight.abs().amax(0)).change(rows)

    scaled = weight * scale.to(dtype)
    state = amax_state(scaled, spec)
    rounded = fake_quantize(scaled, [state[name] for name in spec.state], spec)
    expected = rounded.float() * (1 / scale).to(dtype).float() - weight.float()
    assert torch.equal(found, expected[rows])
