"""Another loss in the stock Trainer, by the callback alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.trainers import callback, make_trainer
from octavo.adapters.huggingface.trainer_loss import replace_loss


class Scaled:
    """A tenth of the model's loss; runs the model again, as one that is its own teacher would be."""

    def __init__(self) -> None:
        self.own: list[float] = []

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> Tensor:
        self.own.append(float(outputs["loss"].detach()))
        with torch.no_grad():
            again = model(**inputs)
        assert torch.equal(again["loss"], outputs["loss"]), "the second run has the model's own loss"
        loss: Tensor = outputs["loss"] / 10
        return loss


def test_training_minimizes_it_and_evaluation_does_not_see_it(stories: Path, tmp_path: Path) -> None:
    loss = Scaled()
    trainer = make_trainer(
        stories, tmp_path, callback(loss=loss), steps=2, gradient_accumulation_steps=2, eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    trainer.train()

    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx([sum(loss.own[:2]) / 10, sum(loss.own[2:]) / 10], rel=1e-5)
    assert min(row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row) > 1
    calls = len(loss.own)
    trainer.model.train()(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]]))
    assert len(loss.own) == calls, "training is over"


def test_a_loss_that_the_trainer_would_ignore(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path, callback(loss=Scaled()), label_smoothing_factor=0.1)

    with pytest.raises(
        octavo.ConfigError, match=r"label_smoothing_factor=0\.1 makes the Trainer compute a loss of"
    ):
        trainer.train()


def test_a_model_that_returns_no_names() -> None:
    model = nn.Linear(2, 2)
    replace_loss(model, Scaled())

    with pytest.raises(octavo.ConfigError, match="returns its outputs by name, found Tensor"):
        model(torch.ones(1, 2))
