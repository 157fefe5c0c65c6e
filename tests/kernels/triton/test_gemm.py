"""Products with packed weights, by Triton's interpreter or on a GPU.

The interpreter has no tensor cores: bf16 and FP8 operands are converted to fp32 first there (exactly), and the
instruction is seen in `test_gemm_compiled.py` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.triton_products import FORMATS, fenced, normal, packed, values
from torch import Tensor

from octavo.core.formats import Quantized, QuantSpec
from octavo.core.ops.calls import NOTHING
from octavo.kernels.triton.gemm_operators import packed_linear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    (1, 1, 1), (1, 3, 2), (2, 65, 15), (16, 1, 33), (17, 5, 130), (33, 70, 300), (1, 67, 600), (66, 131, 129),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Fill what torch allocates with NaN; it also refuses what is not deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def product(x: Tensor, weight: Quantized, spec: QuantSpec, bias: Tensor | None = None, **options: Any) -> Any:
    dtype = options.pop("weight_dtype", x.dtype)
    given = {
        "x_state": [],
        "x_spec": NOTHING,
        "then_state": [],
        "then_spec": NOTHING,
        "dtype": None,
        **options,
    }
    return packed_linear(
        x,
        bias,
        given["x_state"],
        given["x_spec"],
        *weight,
        spec.key,
        given["then_state"],
        given["then_spec"],
        dtype,
        True,
        given["dtype"],
    )


def assert_close(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Compare with the product in float64; the bound is that of fp32 sums and of rounding the result once."""
    wanted = x.double() @ weight.double().mT
    room = x.double().abs() @ weight.double().abs().mT * x.shape[-1] * 2.0**-24
    if bias is not None:
        wanted, room = wanted + bias.double(), room + bias.double().abs() * 2.0**-23
    room = room + torch.finfo(found.dtype).eps / 2 * (wanted.abs() + room) + torch.finfo(found.dtype).tiny
    assert ((found.double() - wanted).abs() <= room).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_with_the_identity_is_the_weight(name: str, dtype: torch.dtype, device: str) -> None:
    spec, shape = FORMATS[name], (19, 71)
    weight = packed(normal(*shape), spec)
    eye = torch.eye(shape[1], dtype=dtype, device=device)
    found = product(eye, Quantized(*(None if t is None else t.to(device) for t in weight)), spec)
    assert torch.equal(found.cpu(), values(weight, spec, shape[1], dtype).T)


@pytest.mark.parametrize("name", ["int4 g128", "nvfp4", "fp8 per channel", "fp8 square blocks"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], name: str, device: str) -> None:
    rows, num_out, num_in = shape
    spec, dtype = FORMATS[name], DTYPES[(rows + num_in) % 3]
    weight, bias = packed(normal(num_out, num_in), spec), normal(num_out, seed=2, dtype=dtype)
    x = normal(rows, num_in, seed=1, dtype=dtype)
    parts = Quantized(*(None if t is None else fenced(t.to(device)) for t in weight))
    found = product(fenced(x.to(device)), parts, spec, fenced(bias.to(device)))
    assert found.dtype == dtype
    assert_close(found.cpu(), x, values(weight, spec, num_in, dtype), bias)
