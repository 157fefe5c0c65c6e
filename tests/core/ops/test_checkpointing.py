"""Activation checkpointing runs forward twice; gradients and state do not notice."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from helpers.ops_cases import normal
from helpers.ops_models import CONFIGS, quantized_feed_forward


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_same_gradients_and_untouched_state(config: str, reentrant: bool) -> None:
    model = quantized_feed_forward(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        x = (normal(3, 4, 64, seed=7) * 1.5).requires_grad_()
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])

    for found, wanted in zip(*gradients, strict=True):
        assert wanted is not None
        assert torch.equal(found, wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
