"""int8 on both sides: sums are exact integers, whatever processor multiplies them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import E4M3, INT8, INT8_CHANNEL, NVFP4, normal, state_of
from helpers.packed_cases import FORMATS, packed
from octavo.core import ops
from octavo.core.formats import PerToken, QuantSpec, chain_key, dequantize, quantize
from octavo.core.ops import kernels
from octavo.kernels.cpu import packed_product
from octavo.kernels.cpu.int8_product import int8_product, multiplies_exactly

TOKEN = QuantSpec("int8", PerToken(), dynamic=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int8 channel", "int8 tensor"])
@pytest.mark.parametrize("spec", [INT8, TOKEN], ids=str)
def test_only_scales_round(spec: QuantSpec, name: str, dtype: torch.dtype) -> None:
    weight, x, bias = packed(FORMATS[name], 9, 70), normal(5, 70, dtype=dtype), normal(9, seed=2, dtype=dtype)
    state = state_of(x, spec)
    found = int8_product(x, state, spec.key, bias, weight.parts)
    values = dequantize(*quantize(x, state, spec), spec, x.shape, torch.float64)
    expected = torch.nn.functional.linear(values, weight.values.double(), bias.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", [INT8, TOKEN], ids=str)
def test_the_largest_sums_do_not_overflow(spec: QuantSpec) -> None:
    weight = packed(FORMATS["int8 tensor"], 1, 2**17 - 1)
    parts = weight.parts._replace(payload=torch.full_like(weight.parts.payload, 0x80), scale=torch.ones(()))
    x = torch.full((1, 2**17 - 1), -1.0)
    found = int8_product(x, [torch.tensor(-1.0)] if spec is INT8 else [], spec.key, None, parts)
    assert found.item() == pytest.approx(128.0 * (2**17 - 1), rel=1e-6)


def test_rows_with_nan_are_nan() -> None:
    weight, x = packed(FORMATS["int8 channel"], 9, 70), normal(5, 70)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    found = int8_product(x, [torch.tensor(1.0)], INT8.key, None, weight.parts)
    assert found.isnan().all(1).tolist() == [False, True, False, False, False]
    assert found.isfinite().all(1).tolist() == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("x_spec", "weight_spec", "in_features", "expected"),
    [
        ([INT8], INT8_CHANNEL, 70, True),
        ([TOKEN], INT8, 2**17 - 1, True),
        ([TOKEN], INT8, 2**17, False),
        ([], INT8, 70, False),
        ([INT8, INT8], INT8, 70, False),
        ([E4M3], INT8, 70, False),
        ([INT8], NVFP4, 70, False),
        ([INT8], FORMATS["mxint8"], 70, False),
        ([INT8_CHANNEL], INT8, 70, False),
    ],
)
def test_which_formats(
    x_spec: list[QuantSpec], weight_spec: QuantSpec, in_features: int, expected: bool
) -> None:
    assert multiplies_exactly(chain_key(x_spec), weight_spec.key, in_features) is expected


def test_the_operator_uses_it_where_the_processor_has_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_product, "multiplies_int8", lambda: True)
    weight, x, bias = packed(FORMATS["int8 channel"], 9, 70), normal(2, 65, 70), normal(9, seed=2)

    def run(x: Tensor) -> Tensor:
        return ops.packed_linear(x, bias, weight.parts, weight.spec, torch.float32, [], TOKEN.key)

    with kernels.using("cpu"):
        found = run(x)
    assert torch.equal(found.view(-1, 9), int8_product(x.view(-1, 70), [], TOKEN.key, bias, weight.parts))
    with kernels.using("reference"):
        torch.testing.assert_close(found, run(x))
