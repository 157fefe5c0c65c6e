"""Formats, shapes and values on which kernels are compared with the reference, byte for byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, Stacked, compute_amax
from octavo.core.ops.kernels import using

INTEGERS = [*(f"int{bits}" for bits in range(2, 9)), "uint2", "uint4", "uint8", "int4_narrow", "int8_narrow"]
FLOATS = ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3"]
ELEMENTS = [*INTEGERS, *FLOATS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCKS = [{-1: 16}, {-1: 32}, {-1: 24}, {-1: 1}, {-2: 3}, {-1: 8, -2: 5}, {-1: 128, -2: 128}, {-1: 1000}]
GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerChannel(-1),
    PerToken(),
    *(PerBlock(tuple(sizes.items())) for sizes in BLOCKS),
]
STACKED = [Stacked(each) for each in GRANULARITIES]  # type: ignore[arg-type]
SHAPES = [(7, 37), (130, 157), (2, 3, 4, 20), (1, 1), (2, 9000)]


def scale_choices(element: str) -> Iterator[dict[str, Any]]:
    """Yield each way in which scales of an element type are made and used."""
    ties = ["even", "toward_zero"] if element in FLOATS else ["even"]
    for tie, dynamic in itertools.product(ties, (False, True)):
        for arithmetic in ("multiply", "divide", "divide_native"):
            yield {"arithmetic": arithmetic, "ties": tie, "dynamic": dynamic}
        for rounding in ("ceil", "even", "floor"):
            yield {"scale": "e8m0", "scale_rounding": rounding, "ties": tie, "dynamic": dynamic}
        yield {"scale": "e4m3", "global_max": 2688.0, "ties": tie, "dynamic": dynamic}


def awkward(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Return values of very different sizes with zeros of both signs, infinities, NaN, ties and whole rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp2(
        torch.randint(-20, 8, (*shape[:-1], 1), generator=generator)
    )
    x = torch.where(torch.rand(shape, generator=generator) < 0.2, (x * 4).round() / 4, x)
    kind = torch.randint(0, 1000, shape, generator=generator)
    for number, value in enumerate((0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-42, -1e-39, 6e4)):
        x = torch.where(kind == number, torch.tensor(value), x)
    zero_rows = torch.rand((*shape[:-1], 1), generator=generator) < 0.1
    return torch.where(zero_rows, 0.0, x).to(dtype)


def state_for(x: Tensor, spec: QuantSpec, seed: int) -> list[Tensor]:
    """Return calibrated state of which some values saturate; magnitudes may be negative where the format allows it."""
    generator = torch.Generator().manual_seed(seed)
    finite = x.float().nan_to_num(1.0, 10.0, -10.0)
    amax = compute_amax(finite, spec) * torch.empty(spec.granularity.scale_shape(x.shape)).uniform_(
        0.3, 1.5, generator=generator
    )
    if spec.may_be_negative:
        amax = torch.where(torch.rand(amax.shape, generator=generator) < 0.3, -amax, amax)
    largest = finite.abs()
    stack = largest.amax() if not spec.is_stacked else largest.flatten(1).amax(1)
    known = {"amax": amax, "global_amax": stack * 0.8}
    return [known[name].float() for name in spec.state]


def same(found: Tensor, expected: Tensor) -> bool:
    """Return whether tensors are equal byte for byte, except for the bits of NaN."""
    if found.dtype != expected.dtype or found.shape != expected.shape or not found.is_contiguous():
        return False
    if expected.dtype == torch.uint8:
        return torch.equal(found, expected)
    nan = expected.float().isnan()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[expected.element_size()]
    equal = found.view(whole) == expected.view(whole)
    return bool((equal | (nan & found.float().isnan())).all())


def nan_without_sign(payload: Tensor, spec: QuantSpec) -> Tensor:
    """Return a payload with one code for NaN: the sign of the reference's depends on where in a vector it was."""
    return torch.where(payload == 0xFF, 0x7F, payload) if spec.element in ("e4m3", "e5m2") else payload


def with_reference(call: Callable[[], Any]) -> Any:
    """Return what the reference makes of a call of an operator."""
    with using("reference"):
        return call()
