"""Products of codes, by Triton's interpreter or on a GPU.

The interpreter multiplies FP8 codes as fp32 numbers; the instructions are seen in `test_compiled_products.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.triton_products import DEVICE, FORMATS, fenced_parts, normal, on_device, packed
from octavo.core import formats
from octavo.core.formats import PerToken, Quantized, QuantSpec
from octavo.core.ops.calls import NOTHING
from octavo.kernels.triton.gemm_operators import packed_linear
from octavo.kernels.triton.gemm_weight import read_weight

torch.use_deterministic_algorithms(True)  # fills new tensors with NaN, too
INPUTS = {"static": QuantSpec("int8"), "dynamic": QuantSpec("int8", PerToken(), dynamic=True)}
SHAPES = [(1, 1, 1), (3, 5, 33), (17, 66, 260), (70, 3, 129)]


def product(
    x: Tensor, state: list[Tensor], spec: QuantSpec, weight: Quantized, weight_spec: QuantSpec
) -> Tensor:
    found = packed_linear(
        x, None, state, spec.key, *weight, weight_spec.key, [], NOTHING, x.dtype, True, None
    )
    assert found is not NotImplemented
    return found


def scaled(x: Quantized, weight: Quantized, sums: Tensor) -> Tensor:
    """Return exact sums of codes, scaled in fp32 in the order that the kernels state."""
    return sums.float() * x.scale.reshape(-1, 1) * weight.scale.reshape(1, -1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", ["int8 per channel", "int8 per tensor"])
def test_integers_are_summed_exactly(name: str, kind: str, shape: tuple[int, int, int]) -> None:
    rows, num_out, num_in = shape
    x, weight = normal(rows, num_in, seed=1), packed(normal(num_out, num_in), FORMATS[name])
    state = [x.abs().max() * 0.7] if kind == "static" else []
    parts = fenced_parts(weight)
    moved = [tensor.to(DEVICE) for tensor in state]
    for dtype in (torch.float32, torch.float16):
        codes = formats.quantize(x.to(dtype), state, INPUTS[kind])
        sums = codes.payload.view(torch.int8).long() @ weight.payload.view(torch.int8).long().T
        found = product(x.to(dtype).to(DEVICE), moved, INPUTS[kind], parts, FORMATS[name]).cpu()
        assert torch.equal(found, scaled(codes, weight, sums).to(dtype))


@pytest.mark.parametrize("kind", INPUTS)
def test_rows_with_nan_stay_nan_though_integers_have_none(kind: str) -> None:
    spec = FORMATS["int8 per channel"]
    x, weight = normal(3, 40, seed=1), packed(normal(4, 40), spec)
    state = [x.abs().max().to(DEVICE)] if kind == "static" else []
    x[1, 2], x[2, 3] = torch.nan, 1e30
    parts = on_device(weight)
    found = product(x.to(DEVICE), state, INPUTS[kind], parts, spec).cpu()
    assert found.isnan().all(1).tolist() == [False, True, False]


def test_sums_that_int32_might_not_hold_are_not_of_codes() -> None:
    from octavo.kernels.triton.gemm_operators import _code_dtype

    spec = FORMATS["int8 per channel"]
    for length, dtype in ((131071, torch.int8), (131072, None)):
        x = torch.empty(1, length, device=DEVICE)
        assert _code_dtype(x, INPUTS["static"].key, spec.key, torch.float32) is dtype


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["fp8 per channel", "fp8 per tensor"])
def test_fp8_codes(name: str, rows: int) -> None:
    from octavo.kernels.triton.gemm_launch import multiply_codes

    spec, x_spec = FORMATS[name], QuantSpec("e4m3", PerToken(), dynamic=True)
    x, bias = normal(rows, 300, seed=1), normal(6, seed=2).half()
    codes, weight = formats.quantize(x, [], x_spec), packed(normal(6, 300), spec)
    moved = on_device(weight)
    read = read_weight(*moved, spec.key, 300, torch.float16)
    assert read is not None
    eights = codes.payload.view(torch.float8_e4m3fn)
    found = multiply_codes(eights.to(DEVICE), codes.scale.to(DEVICE), read, bias.to(DEVICE), torch.float16)
    sums = eights.double() @ weight.payload.view(torch.float8_e4m3fn).double().T
    exact = sums * codes.scale.double()[:, None] * weight.scale.double().reshape(1, -1) + bias
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-3, atol=2e-3)
