"""Every element type with every scale, arithmetic, tie rule and granularity; every 16-bit number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.triton_cases import (
    DEVICE,
    DTYPES,
    assert_all_operators,
    assert_amax,
    assert_same_bits,
    poison_new_tensors,
)
from octavo.core import formats
from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, compute_amax
from octavo.kernels.triton import rounding

poison_new_tensors()
FLOATS = ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3"]
INTEGERS = ["int8", "int4", "int3", "uint5", "int6", "int7", "int2", "uint8", "int8_narrow"]
GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(-1),
    PerToken(),
    PerBlock(((-1, 8),)),
    PerBlock(((-1, 8), (-2, 3))),
    PerBlock(((-2, 3),)),
]
SCALES: list[dict[str, Any]] = [
    {},
    {"dynamic": True},
    {"arithmetic": "divide"},
    {"arithmetic": "divide_native", "dynamic": True},
    {"arithmetic": "divide_native"},
    {"scale": "e4m3", "global_max": 2688.0},
    {"scale": "e4m3", "global_max": 448.0, "dynamic": True},
    {"scale": "e4m3", "global_max": 2688.0, "arithmetic": "divide_native"},
    {"scale": "e8m0", "dynamic": True},
    {"scale": "e8m0", "dynamic": True, "scale_rounding": "even"},
    {"scale": "e8m0", "scale_rounding": "floor", "arithmetic": "divide_native"},
]


def small_tensor(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(7, 19, generator=torch.Generator().manual_seed(7)) * 3.0
    x[2], x[4, :8], x[5, 8:] = 0.0, -0.0, x[5, 8:] * 1e-3
    return x.to(dtype)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_every_element_type_with_every_scale(name: str) -> None:
    offset = [*FLOATS, *INTEGERS].index(name)
    for index, scale in enumerate(SCALES):
        spec = QuantSpec(name, GRANULARITIES[(index + offset) % len(GRANULARITIES)], **scale)
        assert_spec(spec, DTYPES[(index + offset) % 3])


@pytest.mark.parametrize("name", FLOATS)
def test_ties_toward_zero(name: str) -> None:
    for index, scale in enumerate([{}, {"scale": "e8m0", "dynamic": True}]):
        assert_spec(QuantSpec(name, PerBlock(((-1, 8),)), ties="toward_zero", **scale), DTYPES[index])


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_every_granularity(granularity: Any) -> None:
    for dtype in DTYPES:
        assert_amax(small_tensor(dtype), QuantSpec("int8", granularity))
    assert_spec(QuantSpec("e2m1", granularity, "e4m3", 2688.0, dynamic=True), torch.bfloat16)


def assert_spec(spec: QuantSpec, dtype: torch.dtype) -> None:
    x = small_tensor(dtype)
    known = {"amax": compute_amax(x, spec) * 0.7, "global_amax": x.float().abs().max()}
    assert_all_operators(x, spec, [known[name] for name in spec.state])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "ties"), [(n, "even") for n in [*FLOATS, "int8"]] + [("e2m1", "toward_zero")]
)
def test_every_number_of_sixteen_bits(name: str, ties: Any, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    spec = QuantSpec(name, ties=ties, arithmetic="divide")
    amax = torch.tensor(spec.element_type.max)  # steps of 1, so that every tie is among them
    found = rounding.fake_quantize(x.to(DEVICE), [amax.to(DEVICE)], spec.key, True)
    assert_same_bits(found, formats.fake_quantize(x, [amax], spec), f"{spec} {dtype}")


@pytest.mark.parametrize("rule", ["ceil", "even", "floor"])
def test_every_exponent_of_e8m0_scales(rule: Any) -> None:
    exponents = torch.arange(-150, 128).double()
    mantissas = torch.tensor([1.0, 1.25, 1.4999, 1.5, 1.5001, 1.75, 1.875, 1.9999999])
    amax = (2.0 ** exponents[:, None] * mantissas).float().flatten()
    amax = torch.cat([amax, torch.tensor([0.0, torch.inf, torch.nan])])
    x = torch.stack([amax, amax * 0.37], 1)
    for name in ("e2m1", "e4m3", "int2"):
        spec = QuantSpec(name, PerBlock(((-1, 2),)), "e8m0", scale_rounding=rule)
        found = rounding.fake_quantize(x.to(DEVICE), [amax[:, None].to(DEVICE)], spec.key, True)
        assert_same_bits(found, formats.fake_quantize(x, [amax[:, None]], spec), f"{spec}")
