"""Products of rows with the weight of each one's expert, by Triton's interpreter or on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.triton_products import DEVICE, FORMATS, fenced, fenced_parts, normal, packed, values
from octavo.core.formats import Quantized
from octavo.core.ops.calls import NOTHING
from octavo.kernels.triton.gemm_operators import packed_expert_linear

torch.use_deterministic_algorithms(True)  # fills new tensors with NaN, too
EXPERTS, OUT, IN = 5, 7, 44
ROWS = {
    "none": [],
    "fewer than experts": [4, 0, 4],
    "all of one": [2] * 19,
    "first and last": [4, 0] * 9,
    "each": [3, 1, 0, 2, 4, 4, 1],
}


def product(
    x: Tensor, expert: Tensor, bias: Tensor | None, weight: Quantized, key: str, **options: Any
) -> Any:
    then_state, then_spec = options.get("then_state", []), options.get("then_spec", NOTHING)
    dtype = options.get("weight_dtype", x.dtype)
    used = options.get("dtype")
    return packed_expert_linear(x, expert, bias, *weight, key, then_state, then_spec, dtype, used)


def wanted(x: Tensor, expert: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    result = torch.einsum("ri,roi->ro", x.double(), weight.double()[expert])
    return result if bias is None else result + bias.double()[expert]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["int4 g32", "nvfp4", "fp8 per tensor", "mxfp4", "fp8 square blocks"])
def test_each_row_meets_its_expert(name: str, rows: str) -> None:
    spec = FORMATS[name].stacked()
    dtype = torch.float32 if name == "nvfp4" else torch.bfloat16
    expert = torch.tensor(ROWS[rows], dtype=torch.int64)
    weight = packed(normal(EXPERTS, OUT, IN) * torch.arange(1, 6)[:, None, None], spec)
    x, bias = normal(len(expert), IN, seed=1, dtype=dtype), normal(EXPERTS, OUT, seed=2, dtype=dtype)
    parts = fenced_parts(weight)
    for addend in (None, bias):
        given = None if addend is None else fenced(addend.to(DEVICE))
        found = product(fenced(x.to(DEVICE)), fenced(expert.to(DEVICE)), given, parts, spec.key)
        exact = wanted(x, expert, addend, values(weight, spec, IN, dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)


def test_operands_are_cast_to_the_dtype_of_autocast() -> None:
    expert, bias = torch.tensor([1, 0, 1]), normal(EXPERTS, OUT, seed=2).to(DEVICE)
    x = normal(3, IN, seed=1).to(DEVICE)
    parts = fenced_parts(packed(normal(EXPERTS, OUT, IN), SPEC))
    options = {"weight_dtype": torch.float16}

    found = product(x, expert.to(DEVICE), bias, parts, SPEC.key, dtype=torch.float16, **options)
    expected = product(x.half(), expert.to(DEVICE), bias.half(), parts, SPEC.key, **options)

    assert found.dtype == torch.float16
    assert torch.equal(found, expected)


def test_an_expert_that_does_not_exist_is_an_error() -> None:
    """On a GPU the device stops, as in torch's own indexing, which no test can outlive: here only on the CPU."""
    spec = FORMATS["int4 g32"].stacked()
    weight = packed(normal(EXPERTS, OUT, IN), spec)
    for index in (-1, EXPERTS):
        with pytest.raises(RuntimeError, match="above the last one, 4"):
            product(normal(1, IN), torch.tensor([index]), None, weight, spec.key)


SPEC = FORMATS["int4 g32"].stacked()
WEIGHT = packed(normal(EXPERTS, OUT, IN), SPEC)
CALL = {"x": normal(2, IN), "expert": torch.tensor([0, 1]), "bias": None, "weight": WEIGHT, "key": SPEC.key}


@pytest.mark.parametrize(
    "change",
    [
        {"expert": torch.tensor([0, 1], dtype=torch.int32)},
        {"expert": torch.tensor([0])},
        {"x": normal(2, 1, IN)},
        {"x": normal(2, IN).double()},
        {"bias": torch.zeros(OUT)},
        {"bias": torch.zeros(EXPERTS, OUT, dtype=torch.float16)},
        {"weight": WEIGHT._replace(scale=WEIGHT.scale[:, :, :1])},
        {"weight": WEIGHT._replace(payload=WEIGHT.payload[0])},
        {"key": FORMATS["int4 g32"].key},
        {"weight_dtype": torch.float16},
        {"then_spec": FORMATS["fp8 per tensor"].stacked().key, "then_state": [torch.ones(EXPERTS)]},
    ],
)
def test_what_does_not_fit_is_left_to_the_reference(change: dict[str, Any]) -> None:
    assert product(**{**CALL, **change}) is NotImplemented
    assert product(**CALL) is not NotImplemented
