"""The compiled error of codes is the reference's, for every format, shape and instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.kernel_cases import DTYPES, ELEMENTS, GRANULARITIES, STACKED, awkward, state_for, with_reference
from octavo.core import ops
from octavo.core.errors import ShapeError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec
from octavo.kernels.cpu import squared_error
from octavo.kernels.cpu.kernels import CPU
from octavo.kernels.cpu.library import library

SPECS = [
    QuantSpec("e4m3", PerTensor(), arithmetic="divide_native"),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0),
    QuantSpec("int3", PerBlock(((-1, 24), (-2, 5)))),
]


def check(x: torch.Tensor, spec: QuantSpec) -> None:
    packed = with_reference(lambda: ops.quantize(x, state_for(x, spec, 0), spec))
    expected = with_reference(lambda: ops.squared_error(x, packed, spec))
    found = ops.squared_error(x, packed, spec)
    assert found.is_contiguous()
    assert torch.equal(found.nan_to_num(-1.0), expected.nan_to_num(-1.0)), (
        f"{spec} {tuple(x.shape)} {x.dtype}"
    )


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_element_type(element: str) -> None:
    for seed, dtype in enumerate(DTYPES):
        check(awkward((9, 83), seed, dtype), QuantSpec(element, PerBlock(((-1, 16),))))
        check(awkward((3, 1029), seed, dtype).nan_to_num(1.0, 2.0, -2.0), QuantSpec(element))


@pytest.mark.parametrize("granularity", [*GRANULARITIES, *STACKED], ids=str)
def test_every_granularity(granularity: object) -> None:
    spec = QuantSpec("e4m3", granularity)  # type: ignore[arg-type]
    shape = (2, 7, 530) if spec.is_stacked else (7, 530)
    check(awkward(shape, 0, torch.bfloat16).nan_to_num(1.0, 2.0, -2.0), spec)


@pytest.mark.parametrize("shape", [(1, 1), (5, 512), (3, 1024), (2, 513), (4, 2, 16), (40,)], ids=str)
def test_every_shape(shape: tuple[int, ...]) -> None:
    check(awkward(shape, 0, torch.float32).nan_to_num(1.0, 2.0, -2.0), SPECS[0])


def test_a_weight_that_is_not_contiguous() -> None:
    check(awkward((70, 33), 0, torch.float16).nan_to_num(1.0, 2.0, -2.0).t(), SPECS[1])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_oldest_instruction_set(spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = replace(library(), isa="baseline")
    monkeypatch.setattr(squared_error, "library", lambda: oldest)
    squared_error._function.cache_clear()
    try:
        check(awkward((13, 1100), 0, torch.bfloat16).nan_to_num(1.0, 2.0, -2.0), spec)
    finally:
        squared_error._function.cache_clear()


def test_codes_of_another_shape() -> None:
    x = torch.randn(8, 64)
    packed = ops.quantize(x, [x.abs().amax()], QuantSpec("e4m3"))
    with pytest.raises(ShapeError, match=r"shape \(8, 32\).*payload of shape \(8, 32\), found \(8, 64\)"):
        ops.squared_error(x[:, :32], packed, QuantSpec("e4m3"))


def test_what_is_left_to_the_reference() -> None:
    assert CPU.declines("squared_error", SPECS[0].key) is None
    assert CPU.declines("squared_error", QuantSpec("int8", PerChannel(1)).key) == "scales along the input dim"
    assert CPU.declines("squared_error", SPECS[0].stacked().key) == "stacked weights"
