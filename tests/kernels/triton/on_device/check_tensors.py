"""Shapes, strides and values that kernels trip over; what they leave to the reference; memory beside the tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.ops_cases import (
    CHAINS,
    E4M3_SQUARE,
    E4M3_TOKEN,
    INT8_CHANNEL,
    MXFP4,
    MXFP6,
    NVFP4,
    NVFP4_STATIC,
    state_of,
)
from helpers.triton_cases import (
    DEVICE,
    DTYPES,
    assert_all_operators,
    assert_amax,
    assert_same_bits,
    poison_new_tensors,
)
from octavo.core.errors import ShapeError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, chain_key
from octavo.core.formats.hadamard import hadamard_transform
from octavo.core.ops import reference
from octavo.kernels.triton import packing, rounding
from octavo.kernels.triton.device.fake_quantize import fake_quantize_kernel
from octavo.kernels.triton.device.quantize import quantize_kernel
from octavo.kernels.triton.launch import start

poison_new_tensors()
INT3_TOKEN = QuantSpec("int3", PerToken(), dynamic=True)
SPECS = [INT8_CHANNEL, E4M3_TOKEN, E4M3_SQUARE, NVFP4, MXFP6, INT3_TOKEN, QuantSpec("int4", PerChannel(-1))]


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_odd_shapes(spec: QuantSpec) -> None:
    shapes = [(1, 1), (1, 5), (3, 33), (2, 3, 17), (65, 2), (2, 1, 3, 3), (1, 4100)]
    for index, shape in enumerate(shapes):
        x = normal(*shape, dtype=DTYPES[index % 3])
        assert_amax(x, spec)
        assert_all_operators(x, spec, state_of(x, spec))


@pytest.mark.parametrize("spec", [INT8_CHANNEL, E4M3_TOKEN, NVFP4], ids=str)
def test_vectors(spec: QuantSpec) -> None:
    x = normal(21)
    assert_all_operators(x, spec, state_of(x, spec))


@pytest.mark.parametrize("spec", [E4M3_SQUARE, NVFP4_STATIC], ids=str)
def test_strides(spec: QuantSpec) -> None:
    x = normal(24, 40, 3)
    for view in (x[..., 1], x[:, ::2, 0].t(), x[1, :, :].expand(2, 40, 3), x[3:20:2, 5:-1, 2]):
        assert not view.is_contiguous()
        assert_all_operators(view, spec, state_of(view, spec))


def test_an_axis_in_the_middle() -> None:
    x = normal(3, 5, 2, 7)
    for spec in (QuantSpec("int5", PerChannel(1)), QuantSpec("e4m3", PerChannel(2), dynamic=True)):
        assert_amax(x, spec)
        assert_all_operators(x, spec, state_of(x, spec))


@pytest.mark.parametrize("granularity", [
    PerTensor(), PerToken(), PerChannel(0), PerChannel(-1), PerBlock(((-1, 8),)), PerBlock(((-1, 8), (-2, 3))),
], ids=str)  # fmt: skip
def test_stacked_tensors(granularity: object) -> None:
    x = normal(3, 5, 19) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    one_level = QuantSpec("int4", granularity).stacked()  # type: ignore[arg-type]
    assert_amax(x, one_level)
    assert_all_operators(x, one_level, state_of(x, one_level))
    two = QuantSpec("e2m1", granularity, "e4m3", 2688.0).stacked()  # type: ignore[arg-type]
    assert_all_operators(x, two, [state_of(x, two)[0], x.float().abs().amax((1, 2))])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "spec", [E4M3_TOKEN, NVFP4, MXFP4, QuantSpec("int4", PerToken(), dynamic=True)], ids=str
)
def test_special_values(spec: QuantSpec, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = normal(9, 32, dtype=dtype)
    x[0], x[1] = 0.0, -0.0
    x[2, 3], x[3, 4], x[4, 5] = torch.nan, torch.inf, -torch.inf
    x[5], x[6] = tiny * normal(32).to(dtype), tiny / 4
    x[7], x[8] = torch.finfo(dtype).max, -torch.finfo(dtype).max
    assert_amax(x, spec)
    fake = rounding.fake_quantize(x.to(DEVICE), [t.to(DEVICE) for t in state_of(x, spec)], spec.key, True)
    assert_same_bits(fake, reference.fake_quantize(x, state_of(x, spec), spec.key), f"{spec} {dtype}")


@pytest.mark.parametrize("amax", [0.0, -3.0, 1e-40, torch.inf, torch.nan])
@pytest.mark.parametrize("arithmetic", ["multiply", "divide"])
def test_special_maxima(arithmetic: str, amax: float) -> None:
    x, state = normal(4, 9), torch.tensor([amax, 2.0, amax, 1.0])
    for name in ("int4", "e4m3"):
        spec = QuantSpec(name, PerChannel(0), arithmetic=arithmetic)  # type: ignore[arg-type]
        assert_all_operators(x, spec, [state])


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    x, key = normal(5, 48), chain_key(CHAINS[name])
    state = state_of(x, *CHAINS[name])
    known = [tensor.to(DEVICE) for tensor in state]
    found = rounding.fake_quantize(x.to(DEVICE), known, key, True)
    assert_same_bits(found, reference.fake_quantize(x, state, key), name)
    masked = rounding.fake_quantize_backward(x.to(DEVICE), x.to(DEVICE), known, key)
    assert_same_bits(masked, reference.fake_quantize_backward(x, x, state, key), name)


def test_gradients_of_another_dtype() -> None:
    x, grad = normal(5, 48), normal(5, 48, dtype=torch.float32)
    grad[0, 0], grad[1, 1] = torch.inf, torch.nan
    state = state_of(x, NVFP4_STATIC)
    known = [tensor.to(DEVICE) for tensor in state]
    found = rounding.fake_quantize_backward(grad.to(DEVICE), x.to(DEVICE), known, NVFP4_STATIC.key)
    assert_same_bits(found, reference.fake_quantize_backward(grad, x, state, NVFP4_STATIC.key), "fp32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("spec", "shape", "block"),
    [
        (QuantSpec("e4m3"), (3, 5, 64), 64),
        (INT8_CHANNEL, (6, 96), 32),
        (E4M3_TOKEN, (5, 96), 32),
        (QuantSpec("int8", PerToken(), dynamic=True), (3, 2, 128), 128),
        (NVFP4, (5, 128), 128),
        (MXFP4, (7, 64), 16),
        (NVFP4_STATIC, (1, 1024), 1024),
        (QuantSpec("int4", PerBlock(((-1, 24),))), (4, 24), 8),
    ],
    ids=str,
)
def test_rotated_values(spec: QuantSpec, shape: tuple[int, ...], block: int, dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype)
    x[0, ..., 1] = 40.0
    state = state_of(hadamard_transform(x, block), spec)
    known = [tensor.to(DEVICE) for tensor in state]
    found = rounding.rotated_fake_quantize(x.to(DEVICE), block, known, spec.key, True)
    assert_same_bits(found, reference.rotated_fake_quantize(x, block, state, spec.key), f"{spec} {dtype}")


def test_rotations_that_are_left_to_the_reference() -> None:
    for spec, shape, block in [
        (E4M3_SQUARE, (64, 64), 64),  # a program holds parts of rows
        (QuantSpec("e4m3", dynamic=True), (256, 128), 128),  # the maximum is that of rotated values
        (QuantSpec("int4", PerBlock(((-1, 24),)), dynamic=True), (4, 48), 16),
        (INT8_CHANNEL, (2, 2048), 2048),
    ]:
        x = normal(*shape)
        known = [tensor.to(DEVICE) for tensor in state_of(x, spec)]
        assert rounding.rotated_fake_quantize(x.to(DEVICE), block, known, spec.key, True) is NotImplemented


def test_what_is_left_to_the_reference() -> None:
    x = normal(4, 6).to(DEVICE)
    amax = torch.ones(4, device=DEVICE)
    for tensor, state, spec in [
        (x.double(), [amax], INT8_CHANNEL),
        (x[:0], [amax[:0]], INT8_CHANNEL),
        (x.sum(), [], QuantSpec("int8", dynamic=True)),
        (x[None], [], QuantSpec("int8", PerBlock(((-3, 1),)), dynamic=True)),
        (x, [], QuantSpec("int8", PerBlock(((-1, 256), (-2, 128))), dynamic=True)),
    ]:
        assert rounding.fake_quantize(tensor, state, spec.key, True) is NotImplemented, str(spec)
        assert packing.quantize(tensor, state, spec.key) is NotImplemented, str(spec)
        assert rounding.fake_quantize_backward(tensor, tensor, state, spec.key) is NotImplemented, str(spec)
    for state, spec in [
        (amax[:3], INT8_CHANNEL),
        (amax.double(), INT8_CHANNEL),
        (amax, QuantSpec("int8", PerChannel(2))),
    ]:
        with pytest.raises(ShapeError, match=r"found|does not exist"):
            rounding.fake_quantize(x, [state], spec.key, True)
    assert rounding.fake_quantize(x, [], chain_key([]), True) is NotImplemented
    payload, scale = packing.quantize(x, [amax], INT8_CHANNEL.key)
    for parts in [
        (payload[:, :5], scale, None),
        (payload, scale[:3], None),
        (payload, scale, amax),
        (payload, scale.half(), None),
    ]:
        assert packing.dequantize(*parts, INT8_CHANNEL.key, (4, 6), torch.float32) is NotImplemented
    assert packing.dequantize(payload, scale, None, INT8_CHANNEL.key, (4, 6), torch.float64) is NotImplemented


class Guarded:
    """A tensor with poison around it in memory."""

    def __init__(self, x: Tensor, poison: float) -> None:
        self.whole = torch.full((x.numel() + 8192,), poison, dtype=x.dtype, device=DEVICE)
        self.poison = self.whole[0].clone()
        self.inside = self.whole[4096 : 4096 + x.numel()].view(x.shape)
        self.inside.copy_(x)

    def assert_untouched(self) -> None:
        size = self.inside.numel()
        around = torch.cat([self.whole[:4096], self.whole[4096 + size :]]).cpu()
        assert torch.equal(around, self.poison.cpu().expand(8192))


@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (17, 130)])
@pytest.mark.parametrize("spec", [INT8_CHANNEL, E4M3_TOKEN, E4M3_SQUARE, NVFP4, MXFP6], ids=str)
def test_memory_beside_the_tensors_is_neither_read_nor_written(
    spec: QuantSpec, shape: tuple[int, int]
) -> None:
    x = normal(*shape, dtype=torch.float32)
    state = state_of(x, spec)
    values, result = Guarded(x, torch.nan), Guarded(torch.zeros_like(x), 7.0)
    known = dict(zip(spec.state, (Guarded(t, torch.nan).inside for t in state), strict=True))
    tensors = [values.inside, known.get("amax"), known.get("global_amax")]
    start(fake_quantize_kernel, [result.inside, *tensors], spec, shape, whole=spec.dynamic, rotation=1)
    assert_same_bits(result.inside, reference.fake_quantize(x, state, spec.key), str(spec))
    result.assert_untouched()

    bits = spec.element_type.bits
    payload, scale = reference.quantize(x, state, spec.key)[:2]
    codes, scales = Guarded(torch.zeros_like(payload), 99), Guarded(_as_stored(scale), 99)
    start(
        quantize_kernel, [codes.inside, scales.inside, *tensors], spec, shape, whole=spec.dynamic, bits=bits
    )
    assert_same_bits(codes.inside, payload, str(spec))
    codes.assert_untouched()
    scales.assert_untouched()


def _as_stored(scale: Tensor) -> Tensor:
    return scale.view(torch.uint8) if scale.dtype == torch.float8_e4m3fn else scale
