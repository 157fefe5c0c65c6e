"""The callback in the stock Trainer on two real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import octavo
from helpers.launcher import run_on_two_ranks
from helpers.trainers import callback, make_trainer

pytestmark = pytest.mark.launcher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def outcome(folder: Path, stories: Path) -> Any:
    return run_on_two_ranks("trainer_ddp", folder, str(stories))


def test_ranks_have_one_model_and_resume_to_its_weights(outcome: Any) -> None:
    assert outcome["wrapper"] == "DistributedDataParallel"
    assert outcome["ranks"][0] == outcome["ranks"][1]
    assert outcome["different"] == [[], []]


def test_the_first_step_is_that_of_one_process_with_the_same_batch(
    outcome: Any, stories: Path, tmp_path: Path
) -> None:
    schedule = octavo.Schedule(ramp=2, freeze_scales_at=3)
    own = callback(weight_scales="lsq", schedule=schedule)
    alone = make_trainer(stories, tmp_path, own, steps=1, per_device_train_batch_size=4)
    alone.train()

    assert outcome["loss"] == pytest.approx(alone.state.log_history[0]["loss"], rel=1e-4)


def test_rank_0_exports(outcome: Any, folder: Path) -> None:
    served = octavo.load_quantized(folder / "exported")

    assert served.config.model_type == "llama"


def test_a_checkpoint_of_another_recipe_is_refused_on_every_rank(outcome: Any) -> None:
    for message in outcome["refused"]:
        assert message.startswith("the checkpoint was trained by another recipe: config is ")


def test_fsdp_that_is_none_is_said(outcome: Any) -> None:
    assert "asked for fsdp, and every process has the whole model" in outcome["fsdp"]
