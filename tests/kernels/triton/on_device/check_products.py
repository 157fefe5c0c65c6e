"""Products with packed weights, by Triton's interpreter or on a GPU.

The interpreter has no tensor cores: bf16 and FP8 operands are converted to fp32 first there (exactly), and the
instruction is seen in `test_compiled_products.py` only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.triton_products import (
    DEVICE,
    FORMATS,
    fenced,
    fenced_parts,
    normal,
    on_device,
    packed,
    values,
)
from octavo.core.formats import Quantized, QuantSpec
from octavo.core.ops.calls import NOTHING
from octavo.kernels.triton import gemm_weight
from octavo.kernels.triton.gemm_operators import packed_linear
from octavo.kernels.triton.gemm_tiles import tiles
from octavo.kernels.triton.tuning import bucket

torch.use_deterministic_algorithms(True)  # fills new tensors with NaN, too
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    (1, 1, 1), (1, 3, 2), (2, 65, 15), (16, 1, 33), (17, 5, 130), (33, 70, 300), (1, 67, 600), (66, 40, 129),
]  # fmt: skip


def product(x: Tensor, weight: Quantized, spec: QuantSpec, bias: Tensor | None = None, **options: Any) -> Any:
    dtype = options.pop("weight_dtype", x.dtype)
    given = {
        "x_state": [],
        "x_spec": NOTHING,
        "then_state": [],
        "then_spec": NOTHING,
        "dtype": None,
        **options,
    }
    return packed_linear(
        x,
        bias,
        given["x_state"],
        given["x_spec"],
        *weight,
        spec.key,
        given["then_state"],
        given["then_spec"],
        dtype,
        True,
        given["dtype"],
    )


def assert_close(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Compare with the product in float64; the bound is that of fp32 sums and of rounding the result once."""
    wanted = x.double() @ weight.double().mT
    room = x.double().abs() @ weight.double().abs().mT * x.shape[-1] * 2.0**-24
    if bias is not None:
        wanted, room = wanted + bias.double(), room + bias.double().abs() * 2.0**-23
    room = room + torch.finfo(found.dtype).eps / 2 * (wanted.abs() + room) + torch.finfo(found.dtype).tiny
    assert ((found.double() - wanted).abs() <= room).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_with_the_identity_is_the_weight(name: str, dtype: torch.dtype) -> None:
    spec = FORMATS[name]
    num_in = (
        72 if dtype == torch.bfloat16 else 71
    )  # codes are read as words, or as bytes where rows are no whole words
    columns = [*range(8), *range(num_in - 8, num_in)]
    weight = packed(normal(19, num_in), spec)
    eye = torch.eye(num_in, dtype=dtype, device=DEVICE)[columns]
    found = product(eye, on_device(weight), spec)
    assert torch.equal(found.cpu(), values(weight, spec, num_in, dtype).T[columns])


@pytest.mark.parametrize("name", ["int4 g128", "nvfp4", "fp8 per channel", "fp8 square blocks"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], name: str) -> None:
    rows, num_out, num_in = shape
    spec, dtype = FORMATS[name], DTYPES[(rows + num_in) % 3]
    weight, bias = packed(normal(num_out, num_in), spec), normal(num_out, seed=2, dtype=dtype)
    x = normal(rows, num_in, seed=1, dtype=dtype)
    parts = fenced_parts(weight)
    found = product(fenced(x.to(DEVICE)), parts, spec, fenced(bias.to(DEVICE)))
    assert found.dtype == dtype
    assert_close(found.cpu(), x, values(weight, spec, num_in, dtype), bias)


@pytest.mark.parametrize("rows", [1, 70])
def test_every_launch_computes_the_product(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.kernels.triton import gemm_launch

    num_in = 520 if rows == 1 else 72
    spec, x = FORMATS["int4 g32"], normal(rows, num_in, dtype=torch.float16)
    weight = packed(normal(5, num_in, seed=1), spec)
    for tile in tiles(*bucket((rows, 5, num_in))):
        monkeypatch.setattr(gemm_launch, "tiles", lambda *_, tile=tile, **__: (tile,))
        found = product(x.to(DEVICE), on_device(weight), spec)
        assert_close(found.cpu(), x, values(weight, spec, num_in, x.dtype))


def test_columns_are_split_and_summed_in_one_order() -> None:
    spec, x, bias = FORMATS["nvfp4"], normal(2, 600).half(), normal(3, seed=2).half()
    weight = on_device(packed(normal(3, 600, seed=1), spec))
    assert tiles(*bucket((2, 3, 600)))[0]["splits"] > 1
    first, again = (product(x.to(DEVICE), weight, spec, bias.to(DEVICE)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("shape", [(0, 5, 32), (3, 0, 32), (3, 5, 0)], ids=str)
def test_nothing_times_something(shape: tuple[int, int, int]) -> None:
    rows, num_out, num_in = shape
    spec, bias = FORMATS["int4 per channel"], normal(num_out)
    weight = on_device(packed(normal(num_out, num_in), spec))
    found = product(normal(rows, num_in).to(DEVICE), weight, spec, bias.to(DEVICE))
    assert torch.equal(found.cpu(), bias.expand(rows, num_out))


def test_strides_and_leading_dims() -> None:
    spec = FORMATS["int4 g32"]
    weight = packed(normal(6, 64), spec)
    apart = Quantized(*(None if t is None else t.to(DEVICE).repeat_interleave(2, 0)[::2] for t in weight))
    bias = normal(12, seed=1).to(DEVICE)[::2]
    everything = normal(2, 64, 3, seed=2)
    inputs = {
        "transposed": everything.transpose(1, 2),
        "one row expanded": everything[:1, :, 0].expand(4, 64),
        "every second row": everything.reshape(6, 64)[::2],
        "one dim": everything[0, :, 0],
        "the last rows of each": everything.reshape(2, 3, 64)[:, 1:],
    }
    for name, x in inputs.items():
        found = product(x.to(DEVICE), apart, spec, bias)
        assert found.is_contiguous(), name
        assert found.shape == (*x.shape[:-1], 6), name
        assert_close(found.cpu(), x, values(weight, spec, 64, x.dtype), bias.cpu())


def test_a_cast_before_the_product() -> None:
    """As under autocast: weights have been rounded to their own dtype before."""
    spec, x, bias = FORMATS["int4 g32"], normal(3, 64), normal(5, seed=2)
    weight = packed(normal(5, 64, seed=1), spec)
    found = product(
        x.to(DEVICE),
        on_device(weight),
        spec,
        bias.to(DEVICE),
        weight_dtype=torch.bfloat16,
        dtype=torch.float16,
    )
    assert found.dtype == torch.float16
    rounded = values(weight, spec, 64, torch.bfloat16).half()
    assert not torch.equal(rounded, values(weight, spec, 64, torch.float16))
    assert_close(found.cpu(), x.half(), rounded, bias.half())


def test_inputs_are_fake_quantized_first() -> None:
    spec, key = FORMATS["nvfp4"], FORMATS["mxfp4"].key
    x, weight = normal(3, 64), packed(normal(5, 64, seed=1), spec)
    rounded = torch.ops.octavo.fake_quantize(x, [], key, True)
    found = product(x.to(DEVICE), on_device(weight), spec, x_spec=key)
    assert_close(found.cpu(), rounded, values(weight, spec, 64, x.dtype))


def test_numbers_that_are_not_finite_go_where_they_belong() -> None:
    spec = FORMATS["int4 g32"]
    weight = packed(normal(4, 40).abs() + 1, spec)  # the second group ends in the middle
    weight.scale[1, 1], weight.scale[2, 0] = torch.inf, torch.nan
    x = normal(4, 40, seed=1).abs() + 1
    x[3, 7] = torch.nan
    found = product(x.to(DEVICE), on_device(weight), spec).cpu()
    wanted = x.double() @ values(weight, spec, 40, torch.float32).double().T
    assert wanted[:3, 1].isposinf().all()
    assert torch.equal(found[:3, 1], wanted[:3, 1].float())
    assert torch.equal(found.isnan(), wanted.isnan())


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "mxfp8", "fp8 per channel"])
def test_every_scale_and_every_code(name: str) -> None:
    """Each byte as a code, and each as a scale where scales are bytes: the subnormal ones and NaN, too."""
    spec = FORMATS[name]
    per_byte = 8 // spec.element_type.bits
    weight = packed(normal(256, 16), spec)
    weight.payload[:] = torch.arange(256, dtype=torch.uint8)[:, None]
    if weight.scale.dtype != torch.float32:
        weight.scale.view(torch.uint8)[:] = torch.arange(256, dtype=torch.uint8).roll(77)[:, None]
    for column in range(per_byte):
        parts = Quantized(weight.payload[:, :1].contiguous(), weight.scale, weight.global_scale)
        x = torch.zeros(1, per_byte)
        x[0, column] = 1.0
        found = product(x.to(DEVICE), on_device(parts), spec).cpu()
        wanted = x @ values(parts, spec, per_byte, torch.float32).T
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def test_fp8_as_the_device_converts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter converts all but NaN, too, which is why it is let here; a GPU's NaN are seen above."""
    monkeypatch.setattr(gemm_weight, "has_fp8", lambda device: True)
    spec = FORMATS["fp8 per channel"]
    weight = packed(normal(256, 4), spec)
    weight.payload[:] = torch.arange(256, dtype=torch.uint8)[:, None]
    weight.payload[weight.payload & 0x7F == 0x7F] = 0
    found = product(torch.eye(4, device=DEVICE), on_device(weight), spec)
    assert torch.equal(found.cpu(), values(weight, spec, 4, torch.float32).T)


X, WEIGHT = normal(3, 64), packed(normal(5, 64, seed=1), FORMATS["int4 g32"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"then_spec": FORMATS["fp8 per tensor"].key, "then_state": [torch.ones(())]}, {}),
        ({"weight_dtype": torch.bfloat16}, {}),
        ({"weight_dtype": torch.float64}, {}),
        ({"bias": torch.zeros(5, dtype=torch.float16)}, {}),
        ({"bias": torch.zeros(1)}, {}),
        ({}, {"payload": WEIGHT.payload[:, :-1]}),
        ({}, {"payload": WEIGHT.payload.to(torch.int8)}),
        ({}, {"scale": WEIGHT.scale[:, :1]}),
        ({}, {"scale": WEIGHT.scale.half()}),
        ({}, {"scale": WEIGHT.scale.to("meta")}),
        ({}, {"global_scale": torch.ones(())}),
    ],
)
def test_what_does_not_fit_is_left_to_the_reference(options: dict[str, Any], parts: dict[str, Any]) -> None:
    assert product(X, WEIGHT._replace(**parts), FORMATS["int4 g32"], **options) is NotImplemented
    assert product(X.double(), WEIGHT, FORMATS["int4 g32"]) is NotImplemented
    assert product(X, WEIGHT, QuantSpec("int3")) is NotImplemented
