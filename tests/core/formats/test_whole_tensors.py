"""The formats that people use, on whole tensors of every dtype, bit for bit against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import (
    PerBlock,
    PerChannel,
    PerToken,
    QuantSpec,
    dequantize,
    fake_quantize,
    quantize,
)
from oracles import number_formats as oracle


def last(length: int) -> PerBlock:
    return PerBlock(((-1, length),))


FORMATS = {
    "int8 channel": QuantSpec("int8", PerChannel(0)),
    "int8 channel, written": QuantSpec("int8", PerChannel(0), arithmetic="divide"),
    "int8 tensor": QuantSpec("int8"),
    "int8 token": QuantSpec("int8", PerToken(), dynamic=True),
    "int4 block 128": QuantSpec("int4", last(128)),
    "int4 block 128, written": QuantSpec("int4", last(128), arithmetic="divide"),
    "int3 block 32": QuantSpec("int3", last(32)),
    "uint4 block 64": QuantSpec("uint4", last(64), arithmetic="divide"),
    "fp8 tensor": QuantSpec("e4m3"),
    "fp8 tensor, written": QuantSpec("e4m3", arithmetic="divide"),
    "fp8 tensor, written in the model's dtype": QuantSpec("e4m3", arithmetic="divide_native"),
    "fp8 channel": QuantSpec("e4m3", PerChannel(0), arithmetic="divide"),
    "fp8 token": QuantSpec("e4m3", PerToken(), dynamic=True),
    "fp8 blocks 128x128": QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128))), arithmetic="divide"),
    "fp8 e5m2 tensor": QuantSpec("e5m2"),
    "nvfp4": QuantSpec("e2m1", last(16), "e4m3", 2688.0, dynamic=True),
    "nvfp4 static": QuantSpec("e2m1", last(16), "e4m3", 2688.0),
    "nvfp4 block 32": QuantSpec("e2m1", last(32), "e4m3", 448.0, dynamic=True),
    "nvfp4, written in the model's dtype": QuantSpec(
        "e2m1", last(16), "e4m3", 2688.0, dynamic=True, arithmetic="divide_native"
    ),
    "mxfp8": QuantSpec("e4m3", last(32), "e8m0", dynamic=True),
    "mxfp8 e5m2": QuantSpec("e5m2", last(32), "e8m0", dynamic=True),
    "mxfp6 e3m2": QuantSpec("e3m2", last(32), "e8m0", dynamic=True),
    "mxfp6 e2m3": QuantSpec("e2m3", last(32), "e8m0", dynamic=True),
    "mxfp4": QuantSpec("e2m1", last(32), "e8m0", dynamic=True),
    "mxfp4, ties toward zero": QuantSpec("e2m1", last(32), "e8m0", dynamic=True, ties="toward_zero"),
    "mxint8": QuantSpec("int8", last(32), "e8m0", dynamic=True),
}
SHAPES = [(130, 200), (64, 384), (3, 7, 45), (33,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return values with outliers, rows of different size, ties, both zeros and whole blocks of zeros."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    x *= 2.0 ** torch.randint(-6, 3, (*shape[:-1], 1), generator=generator)
    choice = torch.rand(shape, generator=generator)
    x = torch.where(choice < 0.1, (x * 8).round() / 8, x)
    x = torch.where(choice > 0.999, x * 30, x)
    x[..., 1:4], x[..., 4:6] = 0.0, -0.0
    x[..., 16:32] = 0.0
    return x.to(dtype)


def state(x: torch.Tensor, spec: QuantSpec) -> dict[str, Any]:
    """Return calibrated maxima somewhat below the values at hand, so that some of them saturate."""
    values = x.float().numpy()
    amax = oracle.block_amax(values, spec.to_json()["granularity"]) * np.float32(0.8)
    every = {"amax": amax, "global_amax": np.abs(values).max() * np.float32(0.9)}
    return {name: every[name] for name in spec.state}


def assert_same_bytes(actual: torch.Tensor, expected: Any) -> None:
    assert_array_equal(oracle.bits_of(actual.float().numpy()), oracle.bits_of(expected).reshape(actual.shape))


CASES = [
    pytest.param(spec, shape, id=f"{name}-{'x'.join(map(str, shape))}")
    for name, spec in FORMATS.items()
    for shape in SHAPES
    if not (shape == (33,) and spec.granularity in (PerChannel(0), PerBlock(((-1, 128), (-2, 128)))))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_a_tensor_has_the_bytes_of_the_oracle(
    spec: QuantSpec, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = weights(shape, dtype)
    before = x.clone()
    arguments = state(x, spec)
    tensors = [torch.tensor(arguments[name]) for name in spec.state]
    known: dict[str, Any] = {**arguments, "dtype": str(dtype).removeprefix("torch.")}
    values, json = x.float().numpy(), spec.to_json()

    faked = fake_quantize(x, tensors, spec)
    payload, scale, global_scale = quantize(x, tensors, spec)
    back = dequantize(payload, scale, global_scale, spec, shape, dtype)

    expected = oracle.fake_quantize(values, json, **known)
    codes, stored, second = oracle.quantize(values, json, **known)
    assert faked.dtype == back.dtype == dtype
    assert_same_bytes(faked, expected)
    assert_same_bytes(back, expected)
    assert_array_equal(payload.numpy(), codes)
    stored_bytes = scale.view(torch.uint8) if spec.scale != "float32" else scale
    assert stored_bytes.numpy().tobytes() == stored.tobytes()
    assert scale.shape == stored.shape
    assert (global_scale is None) == (second is None)
    assert global_scale is None or oracle.bits_of(global_scale.numpy()) == oracle.bits_of(second)
    assert_same_bytes(x, before.float().numpy())
    assert_same_bytes(back, oracle.dequantize(codes, stored, second, json, shape, known["dtype"]))
