"""Every element type with every scale, arithmetic, tie rule and granularity, on small tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    dequantize,
    fake_quantize,
    quantize,
)
from oracles import number_formats as oracle

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerChannel(0),
    PerChannel(-1),
    PerToken(),
    PerBlock(((-1, 8),)),
    PerBlock(((-1, 8), (-2, 3))),
    PerBlock(((-2, 3),)),
]
SCALES: dict[str, dict[str, Any]] = {
    "multiply": {},
    "multiply-dynamic": {"dynamic": True},
    "divide": {"arithmetic": "divide"},
    "divide-dynamic": {"arithmetic": "divide", "dynamic": True},
    "native": {"arithmetic": "divide_native"},
    "native-dynamic": {"arithmetic": "divide_native", "dynamic": True},
    "e4m3": {"scale": "e4m3", "global_max": 2688.0},
    "e4m3-dynamic": {"scale": "e4m3", "global_max": 448.0, "dynamic": True},
    "e4m3-native": {"scale": "e4m3", "global_max": 2688.0, "arithmetic": "divide_native"},
    "e8m0": {"scale": "e8m0", "dynamic": True},
    "e8m0-native": {"scale": "e8m0", "dynamic": True, "arithmetic": "divide_native"},
}
TIES = [(name, "even") for name in oracle.ELEMENTS] + [(name, "toward_zero") for name in oracle.FLOATS]


def small_tensor(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(7, 19, generator=generator) * 3.0
    x[2], x[4, :8], x[5, 8:] = 0.0, -0.0, x[5, 8:] * 1e-3
    return x.to(dtype)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "ties"), TIES)
def test_fake_quantize_quantize_and_dequantize(name: str, ties: Any, scale: str) -> None:
    for granularity in GRANULARITIES:
        spec = QuantSpec(name, granularity, ties=ties, **SCALES[scale])
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert_equals_the_oracle(small_tensor(dtype), spec)


def assert_equals_the_oracle(x: torch.Tensor, spec: QuantSpec) -> None:
    values, json = x.float().numpy(), spec.to_json()
    amax = oracle.block_amax(values, json["granularity"]) * np.float32(0.7)
    every = {"amax": amax, "global_amax": np.abs(values).max()}
    known: dict[str, Any] = {state: every[state] for state in spec.state}
    tensors = [torch.tensor(value) for value in known.values()]
    known["dtype"] = str(x.dtype).removeprefix("torch.")

    faked = fake_quantize(x, tensors, spec)
    quantized = quantize(x, tensors, spec)
    back = dequantize(*quantized, spec, x.shape, x.dtype)

    expected = oracle.bits_of(oracle.fake_quantize(values, json, **known))
    codes, stored, _ = oracle.quantize(values, json, **known)
    assert_array_equal(oracle.bits_of(faked.float().numpy()), expected, str(spec))
    assert_array_equal(oracle.bits_of(back.float().numpy()), expected, str(spec))
    assert_array_equal(quantized.payload.numpy(), codes, str(spec))
    scale = quantized.scale.view(torch.uint8) if spec.scale != "float32" else quantized.scale
    assert scale.numpy().tobytes() == stored.tobytes()
