"""Runs of rows of packed tensors: in order, together the whole, and each short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo.core.formats import (
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    Quantized,
    QuantSpec,
    compute_amax,
    dequantize,
    quantize,
)
from octavo.core.formats.row_pieces import row_pieces

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
)


def a_weight(shape: tuple[int, ...]) -> torch.Tensor:
    scale = torch.linspace(0.1, 2.0, shape[-2])[:, None]  # of each row, so that no two rows are alike
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale


def packed(x: torch.Tensor, spec: QuantSpec) -> Quantized:
    largest = {"amax": compute_amax(x, spec), "global_amax": x.abs().max()}
    return quantize(x, [largest[name] for name in spec.state], spec)


def values_of(codes: Quantized, spec: QuantSpec, shape: torch.Size) -> torch.Tensor:
    return dequantize(*codes, spec, shape, torch.float32)


@pytest.mark.parametrize(("spec", "shape"), SPECS, ids=str)
def test_pieces_are_the_whole_in_order(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    x = a_weight(shape)
    whole = packed(x, spec)

    found = list(row_pieces(x, whole, spec))

    assert max(len(values) for values, _ in found) <= 384, "a multiple of a block's 128 rows"
    assert torch.equal(torch.cat([values for values, _ in found]), x)
    assert all(values.data_ptr() >= x.data_ptr() for values, _ in found), "views, no copies"
    together = torch.cat([values_of(codes, spec, values.shape) for values, codes in found])
    assert torch.equal(together, values_of(whole, spec, x.shape))


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_few_rows_of_square_blocks(rows: int) -> None:
    x, spec = a_weight((rows, 4000)), QuantSpec("e4m3", PerBlock(((-2, 128), (-1, 128))))
    whole = packed(x, spec)

    found = list(row_pieces(x, whole, spec))

    assert [len(values) for values, _ in found] == [128] * (rows // 128) + [rows % 128] * (rows % 128 > 0)
    together = torch.cat([values_of(codes, spec, values.shape) for values, codes in found])
    assert torch.equal(together, values_of(whole, spec, x.shape))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (QuantSpec("int4", PerTensor()), (2**19,)),
        (QuantSpec("int4", PerBlock(((-1, 32),))).stacked(), (3, 400, 1000)),
    ],
    ids=str,
)
def test_the_only_dim_and_a_stack_are_not_divided(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    x = torch.linspace(-1, 1, 2**19 if len(shape) == 1 else 1_200_000).reshape(shape)
    whole = packed(x, spec)

    ((values, part),) = row_pieces(x, whole, spec)

    assert values is x
    assert part is whole
