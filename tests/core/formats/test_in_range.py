"""The mask of values that quantize without saturating, derived from what saturated values become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, fake_quantize, in_range
from oracles import number_formats as oracle

SPECS = [
    QuantSpec("int8"),
    QuantSpec("int8", PerChannel(0), arithmetic="divide"),
    QuantSpec("int8_narrow", PerToken()),
    QuantSpec("uint4", PerBlock(((-1, 16),))),
    QuantSpec("int4", PerBlock(((-1, 16),)), arithmetic="divide"),
    QuantSpec("e4m3"),
    QuantSpec("e4m3", PerBlock(((-1, 16), (-2, 16)))),
    QuantSpec("e5m2", PerToken()),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), ties="toward_zero"),
]
SLACK = 1 + 2.0**-18  # the mask is a hair wider than the range, so that amax itself is inside
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half_amax(x: torch.Tensor, spec: QuantSpec) -> list[torch.Tensor]:
    amax = torch.tensor(oracle.block_amax(x.float().numpy(), spec.to_json()["granularity"])) * 0.5
    every = {"amax": amax, "global_amax": x.abs().max().float() * 0.5}
    return [every[name] for name in spec.state]


def interval(shape: tuple[int, ...], state: list[torch.Tensor], spec: QuantSpec) -> list[torch.Tensor]:
    """Return what the infinities become, or where a block's stored scale was rounded down, its amax."""
    ends = [fake_quantize(torch.full(shape, end), state, spec) for end in (-torch.inf, torch.inf)]
    if spec.global_max is None:
        return ends
    amax = torch.minimum(*state).repeat_interleave(16, -1)[..., : shape[-1]]
    return [torch.minimum(ends[0], -amax), torch.maximum(ends[1], amax)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_mask_is_the_interval_between_what_infinities_become(spec: QuantSpec, dtype: torch.dtype) -> None:
    x = normal((40, 50)).to(dtype)
    state = half_amax(x, spec)
    low, high = interval((40, 50), state, spec)
    at_ends = torch.where(normal((40, 50), seed=1) > 0, low, high)
    just_outside = torch.where(at_ends == 0, -(2.0**-20), at_ends * SLACK)

    for values in (x, at_ends, just_outside):
        mask = in_range(values, state, spec)
        wide = (values.float() >= low * SLACK) & (values.float() <= high * SLACK)
        narrow = (values.float() >= low) & (values.float() <= high)

        assert mask.dtype == torch.bool
        assert not (mask & ~wide).any()
        assert not (narrow & ~mask).any()
    assert in_range(at_ends, state, spec).all()
    assert not in_range(just_outside, state, spec).any()


@pytest.mark.parametrize("power", [-20, 0, 7])
@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_the_error_is_half_a_gap_at_most_inside_and_the_excess_outside(name: str, power: int) -> None:
    # A power of two as the step, so that quotient and product are exact and the statement has no tolerance.
    spec = QuantSpec(name, arithmetic="divide")
    values = oracle.grid_values(name) * 2.0**power
    x = normal((4000,)) * float(np.abs(values).max())
    state = [torch.tensor(values[-1], dtype=torch.float32)]

    mask = in_range(x, state, spec).numpy()
    exact = x.double().numpy()
    error = np.abs(exact - fake_quantize(x, state, spec).double().numpy())

    above = np.searchsorted(values, exact[mask]).clip(1, len(values) - 1)
    assert (error[mask] <= (values[above] - values[above - 1]) / 2).all()
    excess = np.maximum(exact - values[-1], values[0] - exact)
    assert (excess[mask] <= 0).all()
    assert (error[~mask] == excess[~mask]).all()
    assert (excess[~mask] > 0).all()
    assert 100 < mask.sum() < 3900


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8", "int8_narrow", "int4"])
def test_nothing_saturates_under_dynamic_power_of_two_scales(name: str) -> None:
    spec = QuantSpec(name, PerBlock(((-1, 32),)), "e8m0", dynamic=True)
    x = normal((64, 100)) * 2.0 ** torch.arange(-32, 32)[:, None]

    assert in_range(x, [], spec).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_nan_is_not_in_range_and_infinity_saturates(spec: QuantSpec) -> None:
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0]])
    state = half_amax(torch.ones_like(x), spec)

    assert in_range(x, state, spec).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("spec", [QuantSpec("int8"), SPECS[8]], ids=str)
def test_a_block_of_zeros_is_in_range(spec: QuantSpec) -> None:
    x: Any = torch.zeros(4, 20)

    assert in_range(x, half_amax(x, spec), spec).all()


@pytest.mark.parametrize("arithmetic", ["multiply", "divide"])
@pytest.mark.parametrize("name", ["int8", "e4m3"])
def test_nothing_saturates_under_dynamic_fp32_scales(name: str, arithmetic: Any) -> None:
    x = normal((2000, 16))

    assert in_range(x, [], QuantSpec(name, PerToken(), dynamic=True, arithmetic=arithmetic)).all()
