"""What is compiled computes what the reference does, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from helpers.kernel_cases import (
    DTYPES,
    ELEMENTS,
    FLOATS,
    GRANULARITIES,
    SHAPES,
    STACKED,
    awkward,
    nan_without_sign,
    same,
    scale_choices,
    state_for,
    with_reference,
)
from octavo.core import ops
from octavo.core.errors import ShapeError
from octavo.core.formats import Granularity, PerBlock, QuantSpec, chain_key

BLOCKS_OF_16 = PerBlock(((-1, 16),))


def _quantized(x: Tensor, state: list[Tensor], spec: QuantSpec) -> list[Tensor]:
    payload, *scales = torch.ops.octavo.quantize(x, state, spec.key)
    return [nan_without_sign(payload, spec), *scales]


def _check(x: Tensor, spec: QuantSpec, seed: int = 0) -> None:
    state = state_for(x, spec, seed)
    grad = awkward(tuple(x.shape), seed + 1, x.dtype)
    calls = {
        "amax": lambda: [torch.ops.octavo.amax(x, spec.key)],
        "fake_quantize": lambda: [torch.ops.octavo.fake_quantize(x, state, spec.key, True)],
        "mask": lambda: [torch.ops.octavo.fake_quantize_backward(grad, x, state, spec.key)],
        "quantize": lambda: _quantized(x, state, spec),
    }
    for name, call in calls.items():
        for found, expected in zip(call(), with_reference(call), strict=True):
            assert same(found, expected), f"{name} of {spec} for {tuple(x.shape)} {x.dtype}"
    packed = with_reference(lambda: ops.quantize(x, state, spec))
    call = lambda: ops.dequantize(packed, spec, tuple(x.shape), x.dtype)  # noqa: E731
    assert same(call(), with_reference(call)), f"dequantize of {spec} for {tuple(x.shape)} {x.dtype}"


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_element_type_with_every_scale(element: str) -> None:
    for seed, choice in enumerate(scale_choices(element)):
        dtype = DTYPES[seed % 3]
        spec = QuantSpec(element, BLOCKS_OF_16, **choice)
        _check(awkward((9, 80), seed, dtype), spec, seed)
        _check(awkward((5, 83), seed, DTYPES[(seed + 1) % 3]), spec, seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("granularity", [*GRANULARITIES, *STACKED], ids=str)
def test_every_granularity_of_every_shape(granularity: Granularity, shape: tuple[int, ...]) -> None:
    kinds = [("int8", {}), ("e2m1", {"scale": "e4m3", "global_max": 2688.0}), ("int3", {})]
    for seed, ((element, choice), dynamic) in enumerate(itertools.product(kinds, (False, True))):
        spec = QuantSpec(element, granularity, dynamic=dynamic, **choice)
        x = awkward(shape, seed, DTYPES[seed % 3])
        try:
            granularity.scale_shape(shape)
        except ShapeError:
            with pytest.raises(ShapeError):
                torch.ops.octavo.fake_quantize(x, [torch.ones(())] * len(spec.state), spec.key, True)
            return
        _check(x, spec, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("element", [*FLOATS, "int8", "int4"])
def test_every_number_of_16_bits(element: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for ties in ("even", "toward_zero") if element in FLOATS else ("even",):
        for arithmetic, largest in (("multiply", 1.0), ("divide", 3e-5), ("divide_native", 500.0)):
            spec = QuantSpec(element, arithmetic=arithmetic, ties=ties)  # type: ignore[arg-type]
            state = [torch.tensor(largest)]
            fake = lambda: ops.fake_quantize(x, state, spec.key)  # noqa: B023, E731
            assert same(fake(), with_reference(fake)), f"{spec} {largest}"
            codes = lambda: _quantized(x, state, spec)[0]  # noqa: B023, E731
            assert same(codes(), with_reference(codes)), f"{spec} {largest}"


@pytest.mark.parametrize("rounding", ["ceil", "even", "floor"])
@pytest.mark.parametrize("element", [*FLOATS, "int8"])
def test_scales_of_every_power_and_beside_it(element: str, rounding: str) -> None:
    powers = torch.cat(
        [torch.arange(0, 2**31 - 1, 2**17, dtype=torch.int32), torch.tensor([1, 5, 2**31 - 1])]
    )
    near = torch.cat([powers - 1, powers, powers + 1]).clamp(0).view(torch.float32)
    amax = torch.cat([near, -near])
    x = torch.ones(len(amax), 2)
    for choice in (
        {"scale": "e8m0", "scale_rounding": rounding},
        {"scale": "e4m3", "global_max": 2688.0},
        {},
    ):
        spec = QuantSpec(element, PerBlock(((-1, 2),)), **choice)
        state = [amax[:, None], torch.tensor(3.0)][: len(spec.state)]
        call = lambda: _quantized(x, state, spec)  # noqa: B023, E731
        for found, expected in zip(call(), with_reference(call), strict=True):
            assert same(found, expected), f"{spec}"


def test_chains_with_masks_between_them() -> None:
    specs = [
        QuantSpec("e2m1", BLOCKS_OF_16, "e4m3", 2688.0, dynamic=True),
        QuantSpec("e4m3", PerBlock(((-1, 8), (-2, 4))), dynamic=True),
        QuantSpec("int8"),
    ]
    for chain in (*itertools.permutations(specs), *itertools.permutations(specs, 2)):
        x, grad = awkward((12, 40), 3, torch.bfloat16), awkward((12, 40), 4, torch.bfloat16)
        state = [tensor for spec in chain for tensor in state_for(x, spec, 5)]
        for call in (
            lambda: ops.fake_quantize(x, state, chain_key(chain)),  # noqa: B023
            lambda: torch.ops.octavo.fake_quantize_backward(grad, x, state, chain_key(chain)),  # noqa: B023
        ):
            assert same(call(), with_reference(call))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_are_not_contiguous(dtype: torch.dtype) -> None:
    spec = QuantSpec("e4m3", BLOCKS_OF_16, dynamic=True)
    whole = awkward((64, 33, 6), 0, dtype)
    for x in (whole.transpose(0, 2), whole[::2, 1:, ::3], whole.permute(1, 2, 0), whole[:1].expand(5, 33, 6)):
        _check(x, spec)


def test_large_tensors_are_divided_without_a_seam() -> None:
    x = awkward((60, 4100), 0, torch.bfloat16)
    for granularity in GRANULARITIES[:8]:
        _check(x, QuantSpec("e4m3", granularity))
        _check(x, QuantSpec("int4", granularity, dynamic=True))


def test_poisoned_memory_shows_nowhere() -> None:
    spec = QuantSpec("int3", PerBlock(((-1, 24), (-2, 3))), dynamic=True)
    x = awkward((31, 67), 0, torch.float32).nan_to_num(1.0, 2.0, -2.0)
    expected = with_reference(lambda: ops.fake_quantize(x, [], spec.key))
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        packed = ops.quantize(x, [], spec)
        found = ops.fake_quantize(x, [], spec.key), ops.dequantize(packed, spec, x.shape, x.dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, found, (expected, expected)))


def test_defaults_of_torch_change_nothing() -> None:
    spec = QuantSpec("e2m1", BLOCKS_OF_16, "e4m3", 2688.0)
    x = awkward((9, 80), 0, torch.float32)
    state = state_for(x, spec, 0)
    expected = with_reference(lambda: ops.quantize(x, state, spec))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = ops.quantize(x, state, spec)
            assert same(torch.ops.octavo.amax(x, spec.key), with_reference(lambda: ops.amax(x, spec)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(same, found, expected))
