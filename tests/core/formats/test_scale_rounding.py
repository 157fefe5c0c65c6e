"""Which power of two an e8m0 scale is."""

import math
from collections.abc import Callable

import pytest
import torch

from octavo.core.formats import PerBlock, QuantSpec, dequantize, fake_quantize, quantize
from octavo.core.formats.scales import scales_from_amax

FP4_MANTISSA_BITS, FP4_EXPONENT = 1, 2


def floor_rule(amax: float) -> float:
    return 2.0 ** (math.floor(math.log2(amax)) - FP4_EXPONENT)


def even_rule(amax: float) -> float:
    power = 2.0 ** math.floor(math.log2(amax))
    steps = math.floor(amax / power * 2**FP4_MANTISSA_BITS + 0.5)
    return floor_rule(steps / 2**FP4_MANTISSA_BITS * power)


def ceil_rule(amax: float) -> float:
    return 2.0 ** math.ceil(math.log2(amax / 6))


@pytest.mark.parametrize("rule", [floor_rule, even_rule, ceil_rule])
def test_scales_of_mxfp4(rule: Callable[[float], float]) -> None:
    spec = QuantSpec(
        "e2m1", PerBlock(((-1, 1),)), "e8m0", dynamic=True, scale_rounding=rule.__name__.removesuffix("_rule")
    )
    largest = [1.0, 1.5, 1.7499999, 1.75, 1.9999999, 2.0, 3.0, 3.5, 6.0, 6.0000005, 7.0, 1e-20, 3e20]
    amax = torch.tensor(largest)

    found = scales_from_amax(amax, None, spec).step

    assert found.tolist() == [rule(value) for value in amax.tolist()]


@pytest.mark.parametrize("element", ["int4", "int8"])
def test_a_negative_amax_mirrors_an_integer_range(element: str) -> None:
    spec = QuantSpec(element, PerBlock(((-1, 4),)))
    x = torch.tensor([[8.0, -7.0, 3.0, 0.0]]) * 0.5
    largest = 2 ** (spec.element_type.bits - 1)
    state = [torch.tensor([[-(largest - 1) * 4.0 / largest]])]
    rounded = fake_quantize(x, state, spec)

    assert rounded[0, 0] == 4.0  # the code of the longer side
    packed = quantize(x, state, spec)
    assert torch.equal(dequantize(*packed, spec, x.shape, x.dtype), rounded)
