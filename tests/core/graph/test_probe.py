"""The probe's one forward pass: in eval mode, without gradients, and the model is as it was, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny import tiny_llama
from octavo.core.graph.groups import probe

X = {"x": torch.ones(2, 4)}


class Forked(nn.Module):
    """Two layers that read one tensor, a dropout, and a part that is frozen in eval mode."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.dropout, self.frozen = nn.Dropout(), nn.BatchNorm1d(4).eval()
        self.fails = fails
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((torch.is_grad_enabled(), any(module.training for module in self.modules())))
        y: Tensor = self.left(x) + self.right(x)
        if self.fails:
            raise KeyError("position_ids")
        return self.frozen(self.dropout(y))


def watched(model: Forked) -> dict[str, nn.Module]:
    return {"left": model.left, "right": model.right}


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_what_it_sees_and_how_it_runs() -> None:
    model = Forked()

    assert probe(model, watched(model), X).groups() == [("left", "right")]
    assert model.seen == [(False, False)], "no gradients, nothing in training mode"


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_come_back(fails: bool) -> None:
    model = Forked(fails)
    before = flags(model)
    assert set(before.values()) == {True, False}

    if fails:
        with pytest.raises(KeyError, match="position_ids"):
            probe(model, watched(model), X)
    else:
        probe(model, watched(model), X)

    assert flags(model) == before
    assert torch.is_grad_enabled()
    assert [len(module._forward_pre_hooks) for module in model.modules()] == [0] * len(before)


def test_buffers_and_random_numbers_stay() -> None:
    model = Forked()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()

    probe(model, watched(model), X)

    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_real_and_meta_models(device: str) -> None:
    model = tiny_llama().to(device)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    ids = torch.arange(4, device=device)[None]
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    inputs |= {"attention_mask": torch.zeros(1, 1, 4, 4, device=device)}

    recorder = probe(model, linears, inputs)

    assert recorder.called == set(linears)
    assert recorder.groups() == [
        group
        for block in (f"model.layers.{index}" for index in range(2))
        for group in (
            tuple(f"{block}.self_attn.{letter}_proj" for letter in "qkv"),
            (f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj"),
        )
    ]
