"""Learned scales under a compiler and under activation checkpointing, and what their layers keep for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers.training_models import Loop, Net, batch
from octavo.core.modules import tensor_quantizers

LEARNED: list[dict[str, Any]] = [
    {"weight_scales": "lsq", "activation_scales": "lsq"},
    {"activation_scales": "pact"},
]


def gradients(model: nn.Module, call: Callable[[Tensor], Any], x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    call(x)["output"].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The compiler itself instantiates what it warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("ways", LEARNED, ids=str)
def test_compiled_and_checkpointed_models_have_the_same_gradients(ways: dict[str, Any]) -> None:
    model, x = Loop(**ways).begin().model.eval(), batch(3)["x"]
    wanted = gradients(model, model, x)

    compiled = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)
    checkpointed = gradients(model, lambda x: checkpoint(model, x, use_reentrant=False), x)

    assert sum(name.endswith("amax_shift") for name in wanted) == (6 if "weight_scales" in ways else 3)
    for found in (compiled, checkpointed):
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ways", LEARNED, ids=str)
def test_a_layer_that_learns_scales_keeps_no_more_than_a_plain_one_and_its_scales(
    ways: dict[str, Any],
) -> None:
    plain, layer = Net().second, Loop(**ways).begin().model.second
    scales = sum(t.nbytes for _, q in tensor_quantizers(layer) for t in q.state_tensors())
    x = torch.randn(512, 64).requires_grad_()

    def kept(module: nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(x * 1.0)
        del output
        return sum(storages.values())

    clipping = 4 if "weight_scales" not in ways else 0  # the range, once for clipping and once for rounding
    assert kept(layer) <= kept(plain) + scales + clipping
