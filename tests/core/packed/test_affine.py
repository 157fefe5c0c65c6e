"""Codes with zero points: the values that they stand for."""

from __future__ import annotations

import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, QuantSpec
from octavo.core.formats.packing import pack
from octavo.core.packed import PackedAffine, PackedTensor


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("length", [8, None])
def test_values_are_code_minus_zero_point_times_scale(bits: int, length: int | None) -> None:
    generator = torch.Generator().manual_seed(bits)
    groups = 1 if length is None else 3
    codes = torch.randint(0, 2**bits, (5, 24), generator=generator)
    zeros = torch.randint(0, 2**bits, (5, groups), generator=generator)
    scales = torch.rand(5, groups, generator=generator)
    granularity = PerChannel(0) if length is None else PerBlock(((-1, length),))
    spec, shape = QuantSpec(f"uint{bits}", granularity), granularity.scale_shape((5, 24))
    packed = PackedTensor(
        pack(codes.to(torch.uint8), bits), scales.reshape(shape), None, spec, (5, 24), torch.float16
    )

    found = PackedAffine(packed, zeros.to(torch.uint8).reshape(shape))

    wide = 24 // groups
    expected = (codes - zeros.repeat_interleave(wide, 1)).double() * scales.double().repeat_interleave(
        wide, 1
    )
    assert torch.equal(found.dequantize(torch.float32), expected.float())
    assert torch.equal(found.dequantize(), expected.float().half())
