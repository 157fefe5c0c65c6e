"""Products of packed weights by the compiled kernels: exact values of the weight, sums in fp32, and no stray memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.testing import assert_close

from helpers.ops_cases import E4M3_TOKEN, INT8, NOTHING, normal, state_of
from helpers.packed_cases import FORMATS, Packed, assert_product, exact, packed, packed_stack
from octavo.core import formats, ops
from octavo.core.formats import PerChannel, Quantized, QuantSpec
from octavo.core.ops import kernels
from octavo.kernels.cpu import packed_product
from octavo.kernels.cpu.library import library

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(6, 70), (1, 1), (3, 5), (131, 530)]
FEW = ["int4 g128", "int8 channel", "nvfp4", "e4m3 128x128", "mxfp6 e3m2"]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    """Small products: threads would wait for each other; `test_threads_change_nothing` has them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with kernels.using("cpu"):
        yield
    torch.set_num_threads(before)


@pytest.fixture(params=["baseline", "best"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the functions for one instruction set run: the plain one, or what this machine has."""
    if request.param == "baseline":
        functions = packed_product.Functions(replace(library(), isa="baseline").function)
        monkeypatch.setattr(packed_product, "_functions", lambda: functions)
    return str(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill what torch hands out uninitialized with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(weight: Packed, x: Tensor, bias: Tensor | None = None, **sides: Any) -> Tensor:
    return ops.packed_linear(x, bias, weight.parts, weight.spec, weight.values.dtype, **sides)


@pytest.mark.usefixtures("poisoned", "isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_the_values_of_the_weight_are_those_of_the_reference(name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight = packed(FORMATS[name], *shape, dtype=dtype)
        identity = torch.eye(shape[1], dtype=dtype)
        few = [run(weight, rows) for rows in identity.split(packed_product.MOST_ROWS)]
        assert torch.equal(torch.cat(few).t(), weight.values)
        many = torch.cat([identity, torch.zeros(65, shape[1], dtype=dtype)])
        assert torch.equal(run(weight, many)[: shape[1]].t(), weight.values)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["int4 g32", "int4 g128", "int4 channel", "uint4 g16", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("in_features", [64, 192, 320])
def test_one_row_times_whole_steps_of_four_bit_codes(name: str, in_features: int, dtype: torch.dtype) -> None:
    weight, bias = packed(FORMATS[name], 9, in_features, dtype=dtype), normal(9, seed=2, dtype=dtype)
    rows = [run(weight, row) for row in torch.eye(in_features, dtype=dtype).split(1)]
    assert torch.equal(torch.cat(rows).t(), weight.values)
    x = normal(1, in_features, dtype=dtype)
    assert_product(run(weight, x, bias), x, weight.values, bias)


@pytest.mark.usefixtures("poisoned", "isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_sums_are_those_of_fp32(name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight, bias = packed(FORMATS[name], *shape, dtype=dtype), normal(shape[0], seed=2, dtype=dtype)
        for rows in (0, 1, 2, 7, 17, 64, 65, 129):
            x = normal(rows, shape[1], dtype=dtype)
            assert_product(run(weight, x, bias), x, weight.values, bias)
            assert_product(run(weight, x), x, weight.values)


@pytest.mark.parametrize("out_features", [0, 1, 4, 5])
@pytest.mark.parametrize("in_features", [0, 1, 64])
def test_no_rows_and_no_columns(out_features: int, in_features: int) -> None:
    spec, values = FORMATS["int8 channel"], normal(out_features, in_features)
    parts = formats.quantize(values, [torch.full([out_features], 4.0)], spec)
    weight = Packed(parts, spec, formats.dequantize(*parts, spec, values.shape, torch.float32))
    bias = normal(out_features)
    for rows in (0, 3, 70):
        x = normal(rows, in_features)
        assert_product(run(weight, x, bias), x, weight.values, bias)


def test_threads_change_nothing() -> None:
    weight, x = packed(FORMATS["nvfp4"], 1030, 512), normal(5, 512)
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(run(weight, x))
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("rows", [3, 70])
def test_layouts(rows: int) -> None:
    weight = packed(FORMATS["int4 g32"], 6, 64)
    views: list[Callable[[], Tensor]] = [
        lambda: normal(64, rows).t(),
        lambda: normal(rows, 128)[:, ::2],
        lambda: normal(2, 64, rows).transpose(1, 2),
        lambda: normal(rows, 1).expand(rows, 64),
        lambda: normal(64),
    ]
    for view in views:
        assert_product(run(weight, view()), view(), weight.values)
    strided = Packed(Quantized(*(_strided(part) for part in weight.parts)), weight.spec, weight.values)
    assert not strided.parts.payload.is_contiguous()
    assert_product(run(strided, normal(rows, 64)), normal(rows, 64), weight.values)


def _strided(part: Tensor | None) -> Any:
    return part if part is None or part.dim() < 2 else torch.stack([part, part], -1)[..., 0]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_what_is_not_finite_spreads_as_in_the_reference(name: str, dtype: torch.dtype, rows: int) -> None:
    weight = packed(FORMATS[name], 6, 70, dtype=dtype)
    x = normal(rows, 70, dtype=dtype)
    x[0, 3], x[1, 69] = torch.nan, torch.inf
    damaged = weight.parts.scale.clone()
    damaged.view(torch.uint8).view(-1)[:] = 0x7F if damaged.dtype != torch.uint8 else 0xFF  # NaN of each type
    damaged = damaged.where(torch.arange(damaged.numel()).view(damaged.shape) == 0, weight.parts.scale)
    for scale in (weight.parts.scale, damaged):
        broken = weight._replace(parts=weight.parts._replace(scale=scale))
        with kernels.using("reference"):
            expected = run(broken, x)
        found = run(broken, x)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.isinf(), expected.isinf())
        assert found.isnan().any()


@pytest.mark.parametrize("rows", [3, 70])
def test_x_is_rounded_first(rows: int) -> None:
    weight, x = packed(FORMATS["int8 channel"], 6, 64), normal(2, rows, 64)
    for spec, state in ((INT8, state_of(x, INT8)), (E4M3_TOKEN, [])):
        found = run(weight, x, x_state=state, x_spec=spec.key)
        assert_product(found, ops.fake_quantize(x, state, spec.key), weight.values)


@pytest.mark.parametrize(
    ("weight_dtype", "dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float16),
    ],
)
def test_autocast(weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    weight, x, bias = packed(FORMATS["int4 g32"], 6, 64, dtype=weight_dtype), normal(3, 64), normal(6)
    with torch.autocast("cpu", dtype):
        found = run(weight, x, bias)
    assert found.dtype == dtype
    assert_product(found, x.to(dtype), weight.values.to(dtype), bias.to(dtype))


@pytest.mark.parametrize("name", FEW)
def test_experts(name: str) -> None:
    stack, bias = packed_stack(FORMATS[name], 3, 6, 70), normal(3, 6, seed=2)
    expert = torch.tensor([2, 0, 2, 2, 0] + [0] * 70)  # nobody asks for 1
    x = normal(75, 70)
    found = ops.packed_expert_linear(x, expert, bias, stack.parts, stack.spec, torch.float32)
    for index in (0, 2):
        rows = expert == index
        assert_product(found[rows], x[rows], stack.values[index], bias[index])
    assert ops.packed_expert_linear(
        x[:0], expert[:0], bias, stack.parts, stack.spec, torch.float32
    ).shape == (0, 6)


def test_an_expert_that_is_not_there_is_refused() -> None:
    stack = packed_stack(FORMATS["nvfp4"], 2, 6, 64)
    for index in (2, -1):
        with pytest.raises(ValueError, match=f"there are 2 experts, 0 to 1; a row asks for {index}"):
            ops.packed_expert_linear(
                normal(1, 64), torch.tensor([index]), None, stack.parts, stack.spec, torch.float32
            )


def test_operands_that_do_not_fit_are_refused() -> None:
    weight = packed(FORMATS["nvfp4"], 6, 64)
    with pytest.raises(ValueError, match=r"shape \(6, 80\) .* payload of shape \(6, 40\), found \(6, 32\)"):
        run(weight, normal(3, 80))
    x = normal(3, 64)
    run(weight, x)  # what fits must not let through what does not
    with pytest.raises(ValueError, match="x float32, the weight's values float32, bias bfloat16"):
        run(weight, x, normal(6, dtype=torch.bfloat16))
    half = weight.parts._replace(scale=weight.parts.scale.view(torch.uint8))
    with pytest.raises(ValueError, match=r"a scale of torch\.float8_e4m3fn, found torch\.uint8"):
        ops.packed_linear(x, None, half, weight.spec, torch.float32)
    run(weight, x)


def test_codes_that_change_in_place_or_move_are_read_anew() -> None:
    first, second = (packed(FORMATS["int4 g128"], 6, 256, seed=seed) for seed in (0, 1))
    x = normal(1, 256)
    before, expected = run(first, x), run(second, x)
    assert not torch.equal(before, expected)
    for held, new in zip(first.parts[:2], second.parts[:2], strict=True):
        held.copy_(new)
    assert torch.equal(run(first, x), expected)
    moved = Quantized(*(part if part is None else part.clone() for part in first.parts))
    assert torch.equal(ops.packed_linear(x, None, moved, first.spec, torch.float32), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_are_rounded_as_torch_rounds_them(dtype: torch.dtype, num_rows: int) -> None:
    weight = packed(FORMATS["int8 channel"], 5, 20, dtype=dtype)
    for special in (torch.inf, -torch.inf, torch.nan, 6e4):
        x = torch.zeros(num_rows, 20, dtype=dtype)
        x[-1, 3] = special
        expected = (x[-1, 3].float() * weight.values.float()[:, 3]).to(dtype)
        assert_close(run(weight, x)[-1], expected, rtol=0, atol=0, equal_nan=True)


def test_what_is_left_to_the_reference() -> None:
    columns = QuantSpec("int8", PerChannel(1))
    declines = kernels.candidates("cpu")[0].declines
    assert declines("packed_linear", columns.key) == "scales along the input dim"
    assert declines("packed_linear", FORMATS["nvfp4"].key) is None
    weight, x = packed(columns, 6, 64), normal(3, 64)
    assert torch.equal(run(weight, x), torch.nn.functional.linear(x, weight.values))
    weight = packed(FORMATS["nvfp4"], 6, 64, dtype=torch.float64)
    assert torch.equal(run(weight, x.double()), exact(x, weight.values))


@pytest.mark.parametrize("name", ["int4 g32", "nvfp4"])
def test_opcheck_and_gradients(name: str) -> None:
    weight, x, bias = packed(FORMATS[name], 6, 64), normal(3, 64).requires_grad_(), normal(6).requires_grad_()
    arguments = (x, bias, [], NOTHING, *weight.parts, weight.spec.key, [], NOTHING, torch.float32, True, None)
    # test_schema compares inputs before and after, and torch cannot compare float8 tensors.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(torch.ops.octavo.packed_linear.default, arguments, test_utils=utils)
    grad = normal(3, 6, seed=3)
    run(weight, x, bias).backward(grad)
    torch.testing.assert_close(x.grad, grad @ weight.values)
    torch.testing.assert_close(bias.grad, grad.sum(0))


def test_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    weight = packed(FORMATS["int4 g32"], 64, 64)

    def model(x: Tensor) -> Tensor:
        return run(weight, run(weight, x).relu())

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(normal(3, 64)), model(normal(3, 64)))
    torch._dynamo.reset()
