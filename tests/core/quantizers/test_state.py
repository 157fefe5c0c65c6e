"""State of a quantizer: buffers with fixed names, shapes and dtypes, NaN until calibrated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.errors import ModeError, ShapeError
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec
from octavo.core.quantizers import TensorQuantizer

BLOCKS = PerBlock(((-1, 16),))
NVFP4 = QuantSpec("e2m1", BLOCKS, "e4m3", 2688.0, dynamic=True)
NVFP4_STATIC = QuantSpec("e2m1", BLOCKS, "e4m3", 2688.0)
SHAPES: list[tuple[QuantSpec, dict[str, tuple[int, ...]]]] = [
    (QuantSpec("int8"), {"amax": ()}),
    (QuantSpec("e4m3", PerChannel(0)), {"amax": (6,)}),
    (QuantSpec("e4m3", PerChannel(-1)), {"amax": (40,)}),
    (QuantSpec("e4m3", PerToken()), {"amax": (6,)}),
    (QuantSpec("int4", BLOCKS), {"amax": (6, 3)}),
    (QuantSpec("e4m3", PerBlock(((-1, 16), (-2, 4)))), {"amax": (2, 3)}),
    (NVFP4, {"global_amax": ()}),
    (NVFP4_STATIC, {"amax": (6, 3), "global_amax": ()}),
    (QuantSpec("e4m3", PerToken(), dynamic=True), {}),
    (QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True), {}),
]
STATIC = [spec for spec, shapes in SHAPES if shapes]


def full(quantizer: TensorQuantizer, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in quantizer.named_state().items()}


@pytest.mark.parametrize(("spec", "shapes"), SHAPES, ids=str)
def test_names_shapes_and_dtypes(spec: QuantSpec, shapes: dict[str, tuple[int, ...]]) -> None:
    state = TensorQuantizer(spec, (6, 40)).state_dict()
    flag = state.pop("calibrated", None)

    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert all(tensor.dtype == torch.float32 and tensor.isnan().all() for tensor in state.values())
    assert (flag is None) == (not shapes)
    if flag is not None:
        assert (flag.dtype, flag.shape, flag.item()) == (torch.uint8, (), 0)


def test_a_quantizer_without_format_has_no_state() -> None:
    assert TensorQuantizer().state_dict() == {}


def test_state_is_made_on_the_given_device() -> None:
    quantizer = TensorQuantizer(NVFP4_STATIC, (6, 40), torch.device("meta"))

    assert {str(tensor.device) for tensor in quantizer.buffers()} == {"meta"}
    assert quantizer.amax.shape == (6, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", STATIC, ids=str)
def test_use_before_calibration_is_loud(spec: QuantSpec, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 240).reshape(6, 40).to(dtype)
    x[0, :16] = 0.0  # a block of zeros must be loud as well

    assert TensorQuantizer(spec, x.shape)(x).isnan().all()


@pytest.mark.parametrize("spec", STATIC, ids=str)
def test_the_flag_follows_set_state(spec: QuantSpec) -> None:
    quantizer = TensorQuantizer(spec, (6, 40))
    assert quantizer.needs_calibration

    quantizer.set_state(**full(quantizer, 2.0))

    assert not quantizer.needs_calibration
    assert quantizer.calibrated.item() == 1
    assert all((tensor == 2.0).all() for tensor in quantizer.state_tensors())
    assert not quantizer(torch.ones(6, 40)).isnan().any()


@pytest.mark.parametrize("spec", [None, *(spec for spec, shapes in SHAPES if not shapes)], ids=str)
def test_formats_without_state_need_no_calibration(spec: QuantSpec | None) -> None:
    assert not TensorQuantizer(spec, (6, 40)).needs_calibration


def test_set_state_keeps_the_buffers_and_takes_any_dtype() -> None:
    quantizer = TensorQuantizer(QuantSpec("int8"))
    buffer = quantizer.amax

    quantizer.set_state(amax=torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True))

    assert quantizer.amax is buffer
    assert (buffer.dtype, buffer.item(), buffer.requires_grad) == (torch.float32, 1.5, False)


def test_state_comes_in_the_order_of_the_format() -> None:
    quantizer = TensorQuantizer(NVFP4_STATIC, (6, 40))
    quantizer.set_state(global_amax=torch.tensor(2.0), amax=torch.ones(6, 3))

    assert list(quantizer.named_state()) == ["amax", "global_amax"]
    assert [tensor.shape for tensor in quantizer.state_tensors()] == [(6, 3), ()]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"global has state \['amax', 'global_amax'\], found \[\]$"),
        ({"amax": (6, 3)}, r"found \['amax'\]$"),
        ({"amax": (6, 3), "global_amax": (), "bias": ()}, r"found \['amax', 'bias', 'global_amax'\]$"),
        ({"amax": (6, 2), "global_amax": ()}, r"^amax of e2m1 .* has shape \(6, 3\), found \(6, 2\)$"),
        ({"amax": (6, 3), "global_amax": (1,)}, r"^global_amax of e2m1 .* has shape \(\), found \(1,\)$"),
    ],
)
def test_set_state_says_what_does_not_fit(tensors: dict[str, tuple[int, ...]], message: str) -> None:
    quantizer = TensorQuantizer(NVFP4_STATIC, (6, 40))
    with pytest.raises(ModeError, match=message):
        quantizer.set_state(**{name: torch.ones(shape) for name, shape in tensors.items()})

    assert quantizer.needs_calibration


def test_set_state_that_fails_changes_nothing() -> None:
    quantizer = TensorQuantizer(NVFP4_STATIC, (6, 40))
    quantizer.set_state(**full(quantizer, 1.0))
    with pytest.raises(ModeError, match="global_amax"):
        quantizer.set_state(amax=torch.full((6, 3), 2.0), global_amax=torch.ones(3))

    assert (quantizer.amax == 1.0).all()


@pytest.mark.parametrize("spec", [None, QuantSpec("int8", dynamic=True)], ids=str)
def test_setting_the_empty_state_of_a_stateless_format_is_nothing(spec: QuantSpec | None) -> None:
    quantizer = TensorQuantizer(spec)
    quantizer.set_state(**quantizer.named_state())

    assert not quantizer.needs_calibration


def test_a_shape_that_has_no_such_axis_is_refused() -> None:
    with pytest.raises(ShapeError, match="axis 1 does not exist in a tensor of 1 dims"):
        TensorQuantizer(QuantSpec("int8", PerChannel(1)), (6,))
