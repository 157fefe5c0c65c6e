"""Backward recomputes quantized copies, each once, and only those that a gradient needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.ops_cases import E4M3, INT8_CHANNEL, MXFP4, NOTHING, fused, normal, state_of

FAKE_QUANTIZE = torch.ops.octavo.fake_quantize.default
MASK = torch.ops.octavo.fake_quantize_backward.default


class Calls(TorchDispatchMode):
    """Record every call of our operators with the shape of the tensor they see."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "octavo":
            self.made.append((function, tuple(args[0].shape)))
        return function(*args, **(kwargs or {}))


def calls_of_backward(
    frozen: str, range_mask: bool, x_key: str = E4M3.key
) -> list[tuple[Any, tuple[int, ...]]]:
    x, weight = normal(5, 64), normal(32, 64, seed=1)
    x_state = state_of(x, E4M3) if x_key == E4M3.key else []
    weight_side = (state_of(weight, INT8_CHANNEL), INT8_CHANNEL.key, range_mask)
    x.requires_grad_(frozen != "x")
    weight.requires_grad_(frozen != "weight")
    output = fused(x, weight, None, (x_state, x_key, range_mask), weight_side)
    with Calls() as calls:
        output.sum().backward()
    return calls.made


@pytest.mark.parametrize(
    ("frozen", "recomputed", "masked"),
    [
        ("nothing", [(32, 64), (5, 64)], [(5, 64), (32, 64)]),
        ("weight", [(32, 64)], [(5, 64)]),
        ("x", [(5, 64)], [(32, 64)]),
    ],
)
@pytest.mark.parametrize("range_mask", [True, False])
def test_a_gradient_needs_the_other_side(
    frozen: str, recomputed: list[tuple[int, ...]], masked: list[tuple[int, ...]], range_mask: bool
) -> None:
    made = calls_of_backward(frozen, range_mask)

    assert [shape for function, shape in made if function is FAKE_QUANTIZE] == recomputed
    assert [shape for function, shape in made if function is MASK] == (masked if range_mask else [])


@pytest.mark.parametrize("x_key", [MXFP4.key, NOTHING])
def test_what_cannot_saturate_has_no_mask_and_what_is_off_is_not_recomputed(x_key: str) -> None:
    made = calls_of_backward("nothing", True, x_key)

    assert (MASK, (5, 64)) not in made
    assert ((FAKE_QUANTIZE, (5, 64)) in made) == (x_key == MXFP4.key)
