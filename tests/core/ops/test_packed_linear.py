"""`packed_linear` and `packed_expert_linear` by their reference: values, gradients, graphs, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import linear

from helpers.ops_cases import E4M3, INT8, NOTHING, normal, state_of
from helpers.packed_cases import FORMATS, packed, packed_stack
from octavo.core import ops
from octavo.core.errors import ShapeError, UnsupportedError
from octavo.core.formats import Quantized
from octavo.core.ops import kernels

BFLOAT16 = torch.bfloat16
EXPERT = torch.tensor([2, 0, 2, 2, 0])  # nobody asks for 1
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
FEW = ["int4 g32", "int8 channel", "nvfp4", "mxfp6 e3m2"]


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    torch._dynamo.reset()
    with kernels.using("reference"):
        yield


def experts_by_parts(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    rows = [
        linear(row, values[e], None if bias is None else bias[e]) for row, e in zip(x, EXPERT, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_that_of_the_values(name: str) -> None:
    weight, x, bias = packed(FORMATS[name], 6, 70), normal(3, 70), normal(6, seed=2)
    found = ops.packed_linear(x, bias, weight.parts, weight.spec, torch.float32)
    assert torch.equal(found, linear(x, weight.values, bias))


def test_both_sides_may_be_rounded() -> None:
    weight, x = packed(FORMATS["int4 g32"], 6, 64), normal(3, 64)
    x_state, then = state_of(x, INT8), state_of(weight.values, E4M3)
    found = ops.packed_linear(
        *(x, None, weight.parts, weight.spec, torch.float32, x_state, INT8.key, then, E4M3.key)
    )
    rounded = ops.fake_quantize(weight.values, then, E4M3.key)
    assert torch.equal(found, linear(ops.fake_quantize(x, x_state, INT8.key), rounded))


@pytest.mark.parametrize("name", FEW)
def test_each_row_has_the_weight_of_its_expert(name: str) -> None:
    weight, x, bias = packed_stack(FORMATS[name], 3, 6, 64), normal(5, 64), normal(3, 6, seed=2)
    found = ops.packed_expert_linear(x, EXPERT, bias, weight.parts, weight.spec, torch.float32)
    torch.testing.assert_close(found, experts_by_parts(x, weight.values, bias))


class TestGradients:
    def test_of_a_linear_layer(self) -> None:
        weight = packed(FORMATS["nvfp4"], 6, 64)
        ours, theirs = (
            leaves(normal(2, 3, 64), normal(6, seed=2)),
            leaves(normal(2, 3, 64), normal(6, seed=2)),
        )
        x_state, grad = state_of(ours[0], INT8), normal(2, 3, 6, seed=3)
        ops.packed_linear(*ours, weight.parts, weight.spec, torch.float32, x_state, INT8.key).backward(grad)
        linear(ops.fake_quantize(theirs[0], x_state, INT8.key), weight.values, theirs[1]).backward(grad)
        assert [torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)] == [True, True]
        assert (ours[0].grad == 0).any()  # where x saturates

    def test_of_experts(self) -> None:
        weight = packed_stack(FORMATS["int4 g32"], 3, 6, 64)
        ours, theirs = (
            leaves(normal(5, 64), normal(3, 6, seed=2)),
            leaves(normal(5, 64), normal(3, 6, seed=2)),
        )
        grad = normal(5, 6, seed=3)
        x, bias = ours
        ops.packed_expert_linear(x, EXPERT, bias, weight.parts, weight.spec, torch.float32).backward(grad)
        experts_by_parts(theirs[0], weight.values, theirs[1]).backward(grad)
        for found, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found.grad, wanted.grad)

    def test_of_gradients(self) -> None:
        weight = packed_stack(FORMATS["int8 channel"], 3, 6, 8, dtype=torch.float64)

        def product(x: Tensor, bias: Tensor) -> Tensor:
            return ops.packed_expert_linear(x, EXPERT, bias, weight.parts, weight.spec, torch.float64)

        inputs = leaves(normal(5, 8).double(), normal(3, 6, seed=2).double())
        assert torch.autograd.gradcheck(product, inputs)
        assert torch.autograd.gradgradcheck(product, inputs)


class TestAutocast:
    def test_of_experts(self) -> None:
        weight = packed_stack(FORMATS["int4 g32"], 3, 6, 64)
        x, bias = leaves(normal(5, 64), normal(3, 6, seed=2))
        with torch.autocast("cpu", BFLOAT16):
            found = ops.packed_expert_linear(x, EXPERT, bias, weight.parts, weight.spec, torch.float32)
            expected = torch.cat(
                [linear(x[i : i + 1], weight.values[e], bias[e]) for i, e in enumerate(EXPERT)]
            )
        found.sum().backward()
        assert found.dtype == expected.dtype == BFLOAT16
        torch.testing.assert_close(found, expected)
        assert x.grad is not None
        assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("name", FEW)
def test_opcheck(name: str) -> None:
    weight = packed(FORMATS[name], 6, 64)
    x = normal(3, 64).requires_grad_()
    rest = (*weight.parts, weight.spec.key, [], NOTHING, torch.float32)
    checks: Any = {"test_utils": WITHOUT_SCHEMA} if weight.parts.scale.dtype == torch.float8_e4m3fn else {}
    arguments = (x, normal(6), state_of(x, INT8), INT8.key, *rest, True, None)
    opcheck(torch.ops.octavo.packed_linear.default, arguments, **checks)
    stack = packed_stack(FORMATS[name], 3, 6, 64)
    rest = (*stack.parts, stack.spec.key, [], NOTHING, torch.float32)
    x, bias = leaves(normal(5, 64), normal(3, 6))
    opcheck(torch.ops.octavo.packed_expert_linear.default, (x, EXPERT, bias, *rest, None), **checks)
    grad = normal(5, 6).requires_grad_()
    opcheck(torch.ops.octavo.packed_expert_linear_backward.default, (grad, EXPERT, *rest, 64), **checks)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph_with_the_same_bytes(backend: str) -> None:
    weight, stack = packed(FORMATS["nvfp4"], 64, 64), packed_stack(FORMATS["int4 g32"], 3, 6, 64)

    def model(x: Tensor) -> Tensor:
        x = ops.packed_linear(x, None, weight.parts, weight.spec, torch.float32).relu()
        return ops.packed_expert_linear(x, EXPERT, None, stack.parts, stack.spec, torch.float32)

    results = []
    for function in (model, torch.compile(model, backend=backend, fullgraph=True)):
        (x,) = leaves(normal(5, 64))
        output = function(x)
        output.backward(normal(5, 6, seed=3))
        results.append((output, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


class TestRefused:
    """Found and expected are named, by the operators and by their meta functions."""

    weight = packed(FORMATS["nvfp4"], 6, 64)

    def linear(self, x: Tensor, bias: Tensor | None = None, **parts: Any) -> Tensor:
        weight = self.weight.parts._replace(**parts)
        return ops.packed_linear(x, bias, weight, self.weight.spec, torch.float32)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize(
        ("shape", "changed", "message"),
        [
            ((), {}, r"\[\.\.\., in_features\], found a scalar"),
            ((3, 66), {}, r"shape \(6, 66\) quantized as .* payload of shape \(6, 33\), found \(6, 32\)"),
            ((3, 64), {"bias": torch.ones(5)}, r"bias has shape \(6,\), found \(5,\)"),
            ((3, 64), {"payload": torch.zeros(6, 32)}, r"a payload of torch.uint8, found torch.float32"),
            ((3, 64), {"payload": torch.zeros(32)}, r"payload of the weight has 2 dims, found shape \(32,\)"),
            ((3, 64), {"scale": torch.ones(6, 4)}, r"a scale of torch.float8_e4m3fn, found torch.float32"),
            ((3, 64), {"global_scale": None}, r"e2m1 block.* has a global scale, found none"),
            ((3, 64), {"global_scale": torch.ones(2)}, r"global scale .* has shape \(\), found \(2,\)"),
        ],
    )
    def test_shapes(self, shape: tuple[int, ...], changed: dict[str, Any], message: str, device: str) -> None:
        parts = self.weight.parts._asdict() | changed
        on_device = {name: None if part is None else part.to(device) for name, part in parts.items()}
        with pytest.raises(ShapeError, match=message):
            self.linear(torch.ones(shape, device=device), **on_device)

    def test_a_global_scale_of_one_level(self) -> None:
        parts, spec, _ = packed(FORMATS["int4 g32"], 6, 64)
        with pytest.raises(ShapeError, match=r"int4 block.* has no global scale, found one"):
            ops.packed_linear(
                normal(2, 64), None, parts._replace(global_scale=torch.ones(())), spec, torch.float32
            )

    @pytest.mark.parametrize(
        ("x", "bias", "message"),
        [
            (torch.ones(3, 64), torch.ones(6, dtype=BFLOAT16), "values float32, bias bfloat16"),
            (torch.ones(3, 64, dtype=torch.int64), None, "x int64, the weight's values float32"),
        ],
    )
    def test_dtypes(self, x: Tensor, bias: Tensor | None, message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            self.linear(x, bias)

    def test_devices(self) -> None:
        with pytest.raises(
            UnsupportedError, match="x is on cpu and the weight on meta; move one to the other"
        ):
            self.linear(torch.ones(3, 64), payload=self.weight.parts.payload.to("meta"))

    @pytest.mark.parametrize(
        ("x", "expert", "message"),
        [
            (normal(2, 3, 64), torch.zeros(3).long(), r"\[rows, in_features\], found shape \(2, 3, 64\)"),
            (normal(3, 64), torch.zeros(2).long(), r"expert is int64 \[3\], .*, found int64 \[2\]"),
            (normal(3, 64), torch.zeros(3), r"expert is int64 \[3\], .*, found float32 \[3\]"),
            (normal(3, 64), torch.tensor([0, 1, 2]), "there are 2 experts, 0 to 1; a row asks for 2"),
            (normal(3, 64), torch.tensor([0, 1, -1]), "there are 2 experts, 0 to 1; a row asks for -1"),
        ],
    )
    def test_experts(self, x: Tensor, expert: Tensor, message: str) -> None:
        weight = packed_stack(FORMATS["nvfp4"], 2, 6, 64)
        with pytest.raises(ShapeError, match=message):
            ops.packed_expert_linear(x, expert, None, weight.parts, weight.spec, torch.float32)

    def test_a_format_that_is_not_stacked(self) -> None:
        stack = packed_stack(FORMATS["nvfp4"], 2, 6, 64)
        with pytest.raises(
            ShapeError, match=r"a weight of shape \(2, 6, 64\) is not of the format e2m1 block"
        ):
            ops.packed_expert_linear(
                normal(2, 64),
                torch.zeros(2).long(),
                None,
                Quantized(*stack.parts),
                FORMATS["nvfp4"],
                torch.float32,
            )


def leaves(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]
