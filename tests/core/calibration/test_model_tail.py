"""What follows the last block, run on given hidden states; and inputs that layers share while they are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.shared_inputs import shared_inputs


class Block(nn.Module):
    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.linear, self.returns_tuple = nn.Linear(8, 8), returns_tuple

    def forward(self, hidden_states: Tensor, scale: float) -> Any:
        found = hidden_states + scale * self.linear(hidden_states)
        return (found, None) if self.returns_tuple else found


class Decoder(nn.Module):
    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(returns_tuple) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0, by_name: bool = False) -> dict[str, Tensor]:
        for block in self.blocks:
            found = block(hidden_states=x, scale=scale) if by_name else block(x, scale)
            x = found[0] if isinstance(found, tuple) else found
        return {"logits": self.head(self.norm(x))}


@torch.no_grad()
@pytest.mark.parametrize("returns_tuple", [True, False])
@pytest.mark.parametrize("by_name", [True, False])
def test_the_tail_goes_on_from_hidden_states(returns_tuple: bool, by_name: bool) -> None:
    torch.manual_seed(0)
    model, x = Decoder(returns_tuple), torch.randn(2, 4, 8)
    tail = ModelTail(model, list(model.blocks))
    inputs, outputs = [], []
    with tail.recording(), model.blocks[2].register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    ), model.norm.register_forward_pre_hook(lambda _, args: outputs.append(args[0])):  # fmt: skip
        expected = model(x, scale=0.5, by_name=by_name)["logits"]

    assert tail.leads_to_logits(1)
    call = tail.calls[0]
    other = torch.zeros_like(x)  # what the model is called with does not matter
    torch.testing.assert_close(tail(inputs[0], other, **call.kwargs), expected)
    torch.testing.assert_close(tail.after_blocks(outputs[0], call), expected)
    torch.testing.assert_close(model(x, scale=0.5, by_name=by_name)["logits"], expected)  # left as it was
    assert not tail.leads_to_logits(2)


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.q(x) * self.k(x))


def test_shared_inputs_change_no_number() -> None:
    torch.manual_seed(0)
    quantizer = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    config = {
        "quant_cfg": {"*weight_quantizer": {"enable": False}, "*input_quantizer": quantizer},
        "algorithm": "max",
    }
    x = torch.randn(4, 32, requires_grad=True)
    model = octavo.quantize(Fork(), config, [x.detach()], quiet=True)
    model.o.input_quantizer.pre_quant_scale = torch.rand(32) + 0.5

    def run() -> list[Tensor]:
        output = model(x)
        return [output, *torch.autograd.grad(output.sum(), [x, *model.parameters()])]

    expected = run()
    with shared_inputs(model):
        found = run()

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert model.q.input_quantizer.enabled
    assert model.o.input_quantizer.pre_quant_scale is not None
