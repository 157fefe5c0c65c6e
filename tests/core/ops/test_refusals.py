"""Calibrated tensors and stored parts that do not fit are refused alike by kernels and by the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch

from helpers.ops_cases import INT8, INT8_CHANNEL, NVFP4, NVFP4_STATIC, normal, state_of
from octavo.core import ops
from octavo.core.errors import ShapeError
from octavo.core.formats import Quantized, QuantSpec
from octavo.core.ops.kernels import using


@pytest.fixture(params=["default", "reference"], autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with using("reference") if request.param == "reference" else nullcontext():
        yield


CALLS: dict[str, Callable[..., object]] = {
    "fake_quantize": lambda x, state, spec: ops.fake_quantize(x, state, spec.key),
    "quantize": lambda x, state, spec: ops.quantize(x, state, spec),
    "backward": lambda x, state, spec: torch.ops.octavo.fake_quantize_backward(x, x, state, spec.key),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [(INT8_CHANNEL, (3,), r"\(4,\)"), (INT8, (1,), r"\(\)"), (NVFP4_STATIC, (4, 2), r"\(4, 3\)")],
    ids=str,
)
def test_state_of_another_shape(
    call: Callable[..., object], spec: QuantSpec, shape: tuple[int, ...], expected: str
) -> None:
    state = [torch.ones(shape), torch.ones(())][: len(spec.state)]
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        ShapeError, match=rf"amax of .* \(4, 48\) is torch.float32 of shape {expected}, found .*{found}"
    ):
        call(normal(4, 48), state, spec)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_state_of_another_dtype(call: Callable[..., object]) -> None:
    with pytest.raises(ShapeError, match=r"is torch.float32 of shape \(\), found torch.bfloat16"):
        call(normal(4, 48), [torch.ones((), dtype=torch.bfloat16)], INT8)


def test_an_axis_that_is_not_there() -> None:
    with pytest.raises(ShapeError, match="axis 0 does not exist in a tensor of 0 dims"):
        ops.amax(torch.ones(()), INT8_CHANNEL)


def test_stored_parts_of_another_dtype() -> None:
    x = normal(4, 48)
    packed = ops.quantize(x, state_of(x, NVFP4), NVFP4)
    cases = [
        (packed._replace(payload=packed.payload.int()), "has a payload of torch.uint8, found torch.int32"),
        (packed._replace(scale=packed.scale.float()), "scale of torch.float8_e4m3fn, found torch.float32"),
        (packed._replace(global_scale=None), "has a global scale, found none"),
        (packed._replace(global_scale=torch.ones((), dtype=torch.float64)), "found torch.float64"),
        (packed._replace(payload=packed.payload[:, :-1]), r"payload of shape \(4, 24\), found \(4, 23\)"),
        (packed._replace(scale=packed.scale[:3]), r"scale of shape \(4, 3\), found \(3, 3\)"),
    ]
    for parts, message in cases:
        with pytest.raises(ShapeError, match=message):
            ops.dequantize(parts, NVFP4, (4, 48), torch.float32)


def test_a_second_scale_too_many() -> None:
    x = normal(4, 48)
    packed = ops.quantize(x, state_of(x, INT8), INT8)
    with pytest.raises(ShapeError, match="has no global scale, found one"):
        ops.dequantize(Quantized(*packed[:2], torch.ones(())), INT8, (4, 48), torch.float32)


@pytest.mark.parametrize("shape", [(0, 48), (4, 0)])
def test_tensors_without_elements(shape: tuple[int, ...]) -> None:
    for spec in (INT8, INT8_CHANNEL, NVFP4_STATIC):
        x = torch.empty(shape)
        state = [torch.ones(spec.state_shape(name, shape)) for name in spec.state]
        assert ops.fake_quantize(x, state, spec.key).shape == shape
        packed = ops.quantize(x, state, spec)
        assert ops.dequantize(packed, spec, shape, torch.float32).shape == shape
