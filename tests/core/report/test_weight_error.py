"""The error of stored weights is that of all their values, in whatever pieces it is found."""

from __future__ import annotations

import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec, compute_amax
from octavo.core.ops.kernels import using
from octavo.core.packed import PackedChain, PackedTensor
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


@pytest.mark.parametrize("spec", [SPECS[0].stacked(), SPECS[1].stacked()], ids=str)
def test_error_of_a_stack_is_that_of_all_its_weights(spec: QuantSpec) -> None:
    x = (
        torch.randn(3, 300, 1024, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.1, 1, 3])[:, None, None]
    )

    found, packed = error_of(x, spec)

    lost = (packed.dequantize().double() - x.double()).square().sum()
    assert found == pytest.approx(float(10 * torch.log10(x.double().square().sum() / lost)), rel=1e-7)
    with using("reference"):
        assert error_of(x, spec)[0] == found


@pytest.mark.parametrize(
    "then",
    [
        QuantSpec("e4m3", PerTensor()),
        QuantSpec("e4m3", PerTensor(), dynamic=True),
        QuantSpec("e4m3", PerChannel(0)),
    ],
    ids=str,
)
def test_error_of_two_formats_in_turn(then: QuantSpec) -> None:
    x = torch.randn(900, 1000, generator=torch.Generator().manual_seed(0))
    state = () if then.dynamic else (compute_amax(x, then),)
    chain = PackedChain(error_of(x, SPECS[1])[1], then, state)
    errors = WeightErrors()

    errors.add("w", x, chain)

    lost = (chain.dequantize().double() - x.double()).square().sum()
    assert errors.sqnr["w"] == pytest.approx(
        float(10 * torch.log10(x.double().square().sum() / lost)), rel=1e-7
    )


def test_nothing_lost_is_no_number() -> None:
    assert error_of(torch.ones(4, 32), SPECS[0])[0] is None
