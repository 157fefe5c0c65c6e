"""A packed weight under inputs of another dtype, as a model that was cast after packing has them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from helpers.packed_specs import SPECS, some_tensor, state_of
from octavo.core import ops
from octavo.core.formats import Quantized
from octavo.core.packed import PackedTensor

pytestmark = pytest.mark.usefixtures("reference_kernels")  # bits of products are compared


@pytest.mark.parametrize("name", ["nvfp4", "int8 per channel"])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_values_take_the_dtype_of_the_input(
    name: str, weight_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    weight = some_tensor((32, 64), weight_dtype)
    packed = PackedTensor.pack(weight, state_of(weight, SPECS[name]), SPECS[name])
    codes = Quantized(packed.payload, packed.scale, packed.global_scale)
    found, expected = [], []
    for results in (found, expected):
        x = some_tensor((5, 64), dtype, seed=1).requires_grad_()
        bias = some_tensor((32,), dtype, seed=2).requires_grad_()
        if results is found:
            y = ops.packed_linear(x, bias, codes, packed.spec, weight_dtype)
        else:
            y = linear(x, packed.dequantize().to(dtype), bias)
        y.square().sum().backward()
        results += [y, x.grad, bias.grad]

    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
