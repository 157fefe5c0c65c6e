"""Runs of rows of packed tensors: in order, together the whole, and each short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, compute_amax
from octavo.core.packed import PackedChain, PackedTensor
from octavo.core.packed.row_pieces import row_pieces

MATRIX = (900, 1000)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs are longer with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SPECS = (
    (QuantSpec("e4m3", PerTensor()), MATRIX),
    (QuantSpec("int8", PerChannel(0)), MATRIX),
    (QuantSpec("int8", PerChannel(-1)), MATRIX),
    (QuantSpec("int8", PerToken()), MATRIX),
    (QuantSpec("e3m2", PerBlock(((-1, 32),)), "e8m0"), MATRIX),
    (QuantSpec("e4m3", PerBlock(((-2, 128), (-1, 128)))), MATRIX),
    (QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True), MATRIX),
    (QuantSpec("int4", PerBlock(((-1, 32),))).stacked(), (3, 400, 1000)),
    (QuantSpec("e4m3", PerTensor()).stacked(), (3, 400, 1000)),
    (QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0).stacked(), (3, 400, 1000)),
)


def a_weight(shape: tuple[int, ...]) -> torch.Tensor:
    scale = torch.linspace(0.1, 2.0, shape[-2])[:, None]  # of each row, so that no two rows are alike
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale


def packed(x: torch.Tensor, spec: QuantSpec) -> PackedTensor:
    largest = {
        "amax": compute_amax(x, spec),
        "global_amax": x.abs().amax((-1, -2)) if spec.is_stacked else x.abs().max(),
    }
    return PackedTensor.pack(x, [largest[name] for name in spec.state], spec)


@pytest.mark.parametrize(("spec", "shape"), SPECS, ids=str)
def test_pieces_are_the_whole_in_order(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    x = a_weight(shape)
    whole = packed(x, spec)

    found = list(row_pieces(x, whole))

    assert max(len(values) for values, _ in found) <= 384, "a multiple of a block's 128 rows"
    assert torch.equal(torch.cat([values for values, _ in found]).reshape(shape), x)
    assert all(values.data_ptr() >= x.data_ptr() for values, _ in found), "views, no copies"
    for values, part in found:
        assert isinstance(part, PackedTensor)
        part.check()
        assert part.shape == tuple(values.shape)
    together = torch.cat([part.dequantize() for _, part in found]).reshape(shape)
    assert torch.equal(together, whole.dequantize())


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_few_rows_of_square_blocks(rows: int) -> None:
    x = a_weight((rows, 4000))
    whole = packed(x, QuantSpec("e4m3", PerBlock(((-2, 128), (-1, 128)))))

    found = list(row_pieces(x, whole))

    assert [len(values) for values, _ in found] == [128] * (rows // 128) + [rows % 128] * (rows % 128 > 0)
    assert torch.equal(torch.cat([part.dequantize() for _, part in found]), whole.dequantize())


def test_along_the_only_dim_nothing_is_divided() -> None:
    x = torch.linspace(-1, 1, 2**19)
    whole = packed(x, QuantSpec("int4", PerTensor()))

    ((values, part),) = row_pieces(x, whole)

    assert values is x
    assert part is whole


@pytest.mark.parametrize(
    ("then", "is_divided"),
    [
        (QuantSpec("e4m3", PerTensor()), True),
        (QuantSpec("e4m3", PerTensor(), dynamic=True), False),
        (QuantSpec("e4m3", PerChannel(0)), False),
    ],
    ids=str,
)
def test_of_two_formats_in_turn(then: QuantSpec, is_divided: bool) -> None:
    x = a_weight(MATRIX)
    state = () if then.dynamic else (compute_amax(x, then),)
    chain = PackedChain(packed(x, QuantSpec("int4", PerBlock(((-1, 128),)))), then, state)

    found = list(row_pieces(x, chain))

    assert (len(found) > 1) is is_divided
    assert torch.equal(torch.cat([part.dequantize() for _, part in found]), chain.dequantize())
