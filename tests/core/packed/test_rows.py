"""Rows of packed tensors: taken and joined, they stand for the same values."""

from __future__ import annotations

import pytest
import torch

import octavo
from octavo.core.formats import PerBlock, PerChannel, PerTensor, QuantSpec
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.packed.rows import join_rows, take_rows

SPECS = (
    QuantSpec("e4m3", PerTensor()),
    QuantSpec("int8", PerChannel(0)),
    QuantSpec("int4", PerBlock(((-1, 32),))),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
)


def packed(rows: int, spec: QuantSpec, largest: float = 4.0) -> PackedTensor:
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
    state = [torch.full(spec.state_shape(name, x.shape), largest) for name in spec.state]
    return PackedTensor.pack(x, state, spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_taken_and_joined_rows_have_their_values(spec: QuantSpec) -> None:
    whole, index = packed(12, spec), torch.tensor([7, 0, 11])
    rest = torch.tensor([row for row in range(12) if row not in index.tolist()])

    joined = join_rows([take_rows(whole, index), take_rows(whole, rest)])

    joined.check()
    assert torch.equal(joined.dequantize(), whole.dequantize()[torch.cat([index, rest])])


def test_of_two_formats_in_turn() -> None:
    then = QuantSpec("e4m3", PerTensor())
    chain = PackedChain(packed(4, SPECS[2]), then, (torch.tensor(2.0),))
    index = torch.tensor([3, 1])

    joined = join_rows([take_rows(chain, index), chain])

    assert isinstance(joined, PackedChain)
    assert torch.equal(joined.dequantize(), chain.dequantize()[[3, 1, 0, 1, 2, 3]])
    with pytest.raises(octavo.ShapeError, match=r"a scale of its own, 2 and 3"):
        join_rows([chain, PackedChain(chain.first, then, (torch.tensor(3.0),))])


def test_plain_tensors_and_a_single_one() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(join_rows([x, take_rows(x, torch.tensor([2]))]), torch.cat([x, x[2:3]]))
    assert join_rows([x]) is x


def test_what_does_not_fit_together() -> None:
    with pytest.raises(octavo.ShapeError, match="a scale of its own"):
        join_rows([packed(4, SPECS[0], 4.0), packed(4, SPECS[0], 5.0)])
    with pytest.raises(octavo.ShapeError, match="a scale of its own"):
        join_rows([packed(4, SPECS[3], 4.0), packed(4, SPECS[3], 5.0)])
    with pytest.raises(octavo.ShapeError, match=r"cannot be joined: found .*int8.* and .*int4"):
        join_rows([packed(4, SPECS[1]), packed(4, SPECS[2])])
    with pytest.raises(octavo.ShapeError, match="packed and plain"):
        join_rows([packed(4, SPECS[1]), torch.zeros(4, 64)])
    square = packed(64, QuantSpec("e4m3", PerBlock(((-1, 32), (-2, 32)))))
    with pytest.raises(octavo.ShapeError, match="2 rows of scales stand for 64 rows"):
        take_rows(square, torch.tensor([0]))
