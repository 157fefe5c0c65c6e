"""Second-level scales and their stored reciprocals, for every fp32 mantissa."""

from __future__ import annotations

import pytest
import torch

from octavo.exporters.compressed_tensors.divisors import divisor, stored_maximum


@pytest.mark.parametrize("largest", [2688.0, 1536.0, 448.0])
@pytest.mark.parametrize("exponent", [-60, 0, 90])
def test_readers_recover_maximum_and_scale_bit_for_bit(largest: float, exponent: int) -> None:
    mantissas = (torch.arange(0, 2**23, 3, dtype=torch.int32) + 0x3F800000).view(torch.float32)
    amax = mantissas * 2.0**exponent

    stored = stored_maximum(amax, largest)

    scale = stored / largest
    read = 1.0 / (1.0 / scale)
    assert torch.equal(read, scale)
    assert torch.equal(read * largest, stored)
    assert (stored.view(torch.int32) - amax.view(torch.int32)).abs().max() <= 3


def test_many_scales_have_no_exact_reciprocal() -> None:
    scale = (torch.arange(2**23, dtype=torch.int32) + 0x3F800000).view(torch.float32)

    assert 0.1 < (divisor(divisor(scale)) != scale).float().mean() < 0.2


def test_a_tensor_of_zeros_has_the_scale_one() -> None:
    assert stored_maximum(torch.zeros(2), 2688.0).tolist() == [2688.0, 2688.0]
