"""The error of stored weights is that of all their values, in whatever pieces it is found."""

from __future__ import annotations

import pytest
import torch

from octavo.core.formats import PerBlock, PerTensor, QuantSpec, compute_amax
from octavo.core.packed import PackedTensor
from octavo.core.report.weight_error import WeightErrors

SPECS = (QuantSpec("e4m3", PerTensor()), QuantSpec("int4", PerBlock(((-1, 32),))))


def error_of(x: torch.Tensor, spec: QuantSpec) -> tuple[float | None, PackedTensor]:
    packed, errors = PackedTensor.pack(x, [compute_amax(x, spec)], spec), WeightErrors()
    errors.add("w", x, packed)
    return errors.sqnr["w"], packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_error_of_a_large_weight(spec: QuantSpec, dtype: torch.dtype) -> None:
    x = torch.randn(700, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()

    found, packed = error_of(x, spec)

    exact, stored = x.double(), packed.dequantize(torch.float32).double()
    expected = 10 * torch.log10(exact.square().sum() / (stored - exact).square().sum())
    assert found == pytest.approx(float(expected), rel=1e-7)
    assert torch.equal(x, before), "the weight itself is left alone"


def test_nothing_lost_is_no_number() -> None:
    assert error_of(torch.ones(4, 32), SPECS[0])[0] is None
