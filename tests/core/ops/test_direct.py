"""Calls past torch's dispatcher: only where nothing but the kernel would see them, and with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.ops_cases import normal
from helpers.packed_cases import FORMATS, Packed, packed
from octavo.core import ops
from octavo.core.ops import direct, kernels

OPERATOR = torch.ops.octavo.packed_linear.default


@pytest.fixture
def weight() -> Packed:
    return packed(FORMATS["int4 g32"], 6, 64)


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that were called past the dispatcher."""
    calls: list[str] = []

    def recorded(operator: str, *args: Any) -> Any:
        calls.append(operator)
        return kernels.run(operator, *args)

    monkeypatch.setattr(direct, "run", recorded)
    return calls


def run(weight: Packed, x: Tensor) -> Tensor:
    return ops.packed_linear(x, None, weight.parts, weight.spec, weight.values.dtype)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


class Other(Tensor):
    """A class that torch hands tensors of on."""


def test_nobody_looks(weight: Packed, direct_calls: list[str]) -> None:
    x = normal(3, 64)
    frozen = nn.Parameter(x.clone())
    results = [run(weight, x)]
    with torch.no_grad():
        results.append(run(weight, frozen))
    with torch.inference_mode():
        results.append(run(weight, x.clone()))
    assert direct_calls == ["packed_linear"] * 3
    expected = run(weight, frozen)
    assert expected.grad_fn is not None
    assert all(torch.equal(result, expected) for result in results)
    assert len(direct_calls) == 3


def test_autograd_looks(weight: Packed, direct_calls: list[str]) -> None:
    x = normal(3, 64).requires_grad_()
    run(weight, x).sum().backward()
    torch.testing.assert_close(x.grad, weight.values.sum(0).expand(3, 64))
    assert direct_calls == []


def test_a_mode_looks(weight: Packed, direct_calls: list[str]) -> None:
    seen = Seen()
    with seen:
        run(weight, normal(3, 64))
    assert OPERATOR in seen.operators
    assert direct_calls == []


def test_a_class_looks(weight: Packed, direct_calls: list[str]) -> None:
    x = normal(3, 64)
    found = run(weight, x.as_subclass(Other))
    assert isinstance(found, Other)
    assert direct_calls == []


def test_vmap_looks(weight: Packed, direct_calls: list[str]) -> None:
    with pytest.raises(RuntimeError, match="Batching rule not implemented for octavo::packed_linear"):
        torch.func.vmap(lambda row: run(weight, row))(normal(3, 64))
    assert direct_calls == []


def test_a_traced_graph_has_the_operator(weight: Packed, direct_calls: list[str]) -> None:
    graph = make_fx(lambda rows: run(weight, rows))(normal(3, 64))
    assert OPERATOR in [node.target for node in graph.graph.nodes]
    assert direct_calls == []
