"""Perplexity at its limits: nothing to predict, a broken model, grad mode, devices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import octavo
from helpers.evaluation_reference import CASES, Batch, Logits, padded, random_table
from helpers.tiny import VOCABULARY, token_batches
from octavo.core.errors import ConfigError
from octavo.core.evaluation.language import batches_on


@pytest.mark.parametrize(
    "batches",
    [[], [{"input_ids": torch.ones(2, 1, dtype=torch.long)}], [padded(token_batches(1)[0], [1, 0])]],
)
def test_without_a_token_to_predict_it_is_refused(batches: list[Batch]) -> None:
    model = Logits(random_table())
    message = "^there is no token to predict: give samples of two tokens or more$"

    with pytest.raises(ConfigError, match=message):
        octavo.perplexity(model, batches)
    with pytest.raises(ConfigError, match=message):
        octavo.compare(model, model, batches)


def test_a_broken_model_has_an_infinite_perplexity() -> None:
    model = Logits(torch.eye(VOCABULARY).roll(1, 0) * 1e4)

    assert octavo.perplexity(model, CASES["plain"]) == math.inf


def test_gradients_are_off_and_the_callers_mode_is_kept() -> None:
    modes: list[bool] = []

    class Watched(Logits):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return super().forward(input_ids, attention_mask)

    octavo.perplexity(Watched(random_table()), CASES["plain"])

    assert modes == [False] * 3
    assert torch.is_grad_enabled()


def test_batches_move_to_a_device() -> None:
    (moved,) = batches_on(CASES["padded"][:1], torch.device("meta"))

    assert moved.keys() == CASES["padded"][0].keys()
    assert all(tensor.is_meta for tensor in moved.values())
