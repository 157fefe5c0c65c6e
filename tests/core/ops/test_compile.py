"""`torch.compile(fullgraph=True)`: the operators stay opaque and the bytes stay the same, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.decomposition import select_decomp_table

from helpers.ops_cases import normal
from helpers.ops_models import CONFIGS, forward_and_backward, quantized_feed_forward
from octavo.core.formats import QuantSpec

LINEAR = torch.ops.octavo.fake_quantized_linear.default
CHAIN = torch.ops.octavo.fake_quantize.default
X = normal(3, 4, 64, seed=7) * 1.5  # beyond what calibration saw, so that values saturate


# Raised by torch's own imports when inductor starts.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("config", "backend"),
    [
        *((config, "aot_eager") for config in CONFIGS),
        *((config, "inductor") for config in ("chained", "NVFP4_DEFAULT_CFG")),
    ],
)
def test_same_bytes_forward_and_backward(config: str, backend: str) -> None:
    model = quantized_feed_forward(config)
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)

    expected = forward_and_backward(model, model, X)
    for found, wanted in zip(forward_and_backward(model, compiled, X), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_graph_after_all_decompositions_has_the_operators_and_nothing_of_their_inside() -> None:
    seen: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return make_boxed_func(graph.forward)

    model = quantized_feed_forward("chained")
    backend = aot_autograd(fw_compiler=record, bw_compiler=record, decompositions=select_decomp_table())
    forward_and_backward(model, torch.compile(model, backend=backend, fullgraph=True), X)

    targets = [[n.target for n in graph.graph.nodes if n.op == "call_function"] for graph in seen]
    forward, backward = ({str(t) for t in graph} for graph in targets)
    assert targets[0].count(LINEAR) == 2
    assert targets[0].count(CHAIN) == 2  # the output quantizers
    assert targets[1].count(torch.ops.octavo.fake_quantize_backward.default) > 0
    for inside in ("round", "clamp", "reciprocal", "amax", "convert_element_type", "frexp", "aten.div"):
        assert not [name for name in forward | backward if inside in name and "octavo" not in name]


def test_one_graph_serves_every_number_of_rows() -> None:
    model = quantized_feed_forward("NVFP4_DEFAULT_CFG")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(X), model(X))

    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (2, 7, 12):
            x = normal(rows, 5, 64, seed=rows)
            assert torch.equal(compiled(x), model(x))


class TestChanges:
    """What is changed on a quantizer after compiling is seen by the next call."""

    @pytest.fixture
    def model(self) -> nn.Module:
        return quantized_feed_forward("INT8_DEFAULT_CFG")

    @pytest.fixture
    def compiled(self, model: nn.Module) -> Any:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        self.before = compiled(X)
        assert torch.equal(self.before, model(X))
        return compiled

    def test_enabled(self, model: Any, compiled: Any) -> None:
        model.up.weight_quantizer.enabled = False
        assert not torch.equal(model(X), self.before)
        assert torch.equal(compiled(X), model(X))

    def test_state(self, model: Any, compiled: Any) -> None:
        model.up.weight_quantizer.set_state(amax=model.up.weight_quantizer.amax / 2)
        assert not torch.equal(model(X), self.before)
        assert torch.equal(compiled(X), model(X))

    def test_format(self, model: Any, compiled: Any) -> None:
        model.up.input_quantizer.respecify(QuantSpec("int4"))
        assert not torch.equal(model(X), self.before)
        assert torch.equal(compiled(X), model(X))

    def test_range_mask(self, model: Any, compiled: Any) -> None:
        before = forward_and_backward(model, model, X)
        model.up.input_quantizer.range_mask = False
        after = forward_and_backward(model, model, X)
        assert not torch.equal(after[1], before[1])
        assert torch.equal(forward_and_backward(model, compiled, X)[1], after[1])
