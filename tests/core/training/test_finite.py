"""A loss that is not finite stops training, and says where it began."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from helpers.training_models import Net, batch
from octavo.core.training.finite import watch_loss


def test_a_finite_loss_passes() -> None:
    model = Net()
    watch_loss(model)

    model(**batch(0))["loss"].backward()


def test_the_first_module_is_named_not_those_after_it() -> None:
    model = Net()
    model.second.register_forward_hook(lambda module, args, output: output * torch.inf)
    watch_loss(model)

    with pytest.raises(octavo.TrainingError, match=r"loss is (nan|inf); the first module .* is 'second'"):
        model(**batch(0))


def test_a_parameter_that_an_earlier_step_broke_is_named() -> None:
    model = Net()
    nn.init.constant_(model.last.bias, torch.nan)
    watch_loss(model)

    with pytest.raises(
        octavo.TrainingError, match=r"first parameter with NaN or infinite values is 'last\.bias'"
    ):
        model(**batch(0))


def test_labels_that_are_not_finite() -> None:
    model = Net()
    watch_loss(model)

    with pytest.raises(
        octavo.TrainingError, match="every module's output is finite, so it is the loss itself"
    ):
        model(**{**batch(0), "labels": torch.full((24, 16), torch.nan)})


def test_evaluation_is_not_watched_and_a_removed_watch_is_silent() -> None:
    model = Net()
    handle = watch_loss(model)
    bad = {**batch(0), "labels": torch.full((24, 16), torch.nan)}
    model.eval()(**bad)
    handle.remove()

    assert model.train()(**bad)["loss"].isnan()
