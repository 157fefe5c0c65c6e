"""FSDP2 over views of packed weights that are parameters themselves: shard, forward, backward past them, gather."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from helpers.packed_views import packed
from launched.common import ARGUMENTS, joined, of_all_ranks, report
from octavo.core.errors import UnsupportedError
from octavo.core.packed import PackedView


class Block(nn.Module):
    """A trained layer before a frozen packed one."""

    def __init__(self, view: PackedView) -> None:
        super().__init__()
        self.trained = nn.Linear(64, view.shape[1])
        self.weight = nn.Parameter(view, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.trained(x), self.weight)


def outcome(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    block, x = Block(PackedView(packed(name))), torch.randn(3, 64)
    dense = block.weight.dequantize()
    expected = block(x)
    expected.sin().sum().backward()
    gradient, block.trained.weight.grad = block.trained.weight.grad, None

    fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    y = block(x)
    y.sin().sum().backward()
    again = block(x)
    full = get_model_state_dict(block, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {
        "rows": of_all_ranks(block.weight.to_local().payload.shape[0]),
        "output": torch.equal(y, expected) and torch.equal(again, expected),
        "gradient": torch.allclose(block.trained.weight.grad.full_tensor(), gradient, rtol=1e-5, atol=1e-7),
        "whole": torch.equal(block.weight.full_tensor().dequantize(), dense),
        "saved": "weight" not in full or torch.equal(full["weight"].dequantize(), dense),
    }


def refused() -> list[str]:
    """Return what each rank says of rows that do not divide."""
    block = Block(PackedView(packed("fp8")).narrow(0, 0, 31))
    fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    try:
        block(torch.ones(1, 64))
    except UnsupportedError as error:
        return of_all_ranks(str(error))
    return of_all_ranks("no error")


with joined():
    report(outcomes={name: outcome(name) for name in ARGUMENTS}, refused=refused())
