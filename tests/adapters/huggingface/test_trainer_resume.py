"""A run that was interrupted and resumed gives the weights of one that was not, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.trainers import callback, make_trainer

SCHEDULE = octavo.Schedule(weights_from=1, activations_from=3, ramp=2, freeze_scales_at=5)
RECIPES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "int4_learned": (
        "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        {"weight_scales": "lsq", "schedule": SCHEDULE},
        (2, 4),
    ),
    "int8_all_learned": (
        "INT8_DEFAULT_CFG",
        {"weight_scales": "lsq", "activation_scales": "pact", "schedule": SCHEDULE},
        (2,),
    ),
    "int8_smoothed_recomputed": ("INT8_SMOOTHQUANT_CFG", {"weight_scales": "recomputed"}, (4,)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_uninterrupted(stories: Path, tmp_path: Path, name: str) -> None:
    config, options, stops = RECIPES[name]

    def train(folder: str, resume: str | None) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            stories, tmp_path / folder, callback(config, **options), steps=6, save_strategy="steps", save_steps=2,
            weight_decay=0.1, logging_steps=3,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(tmp_path / folder / "final"))
        return load_file(tmp_path / folder / "final" / "model.safetensors")

    whole = train("whole", None)
    for step in stops:
        resumed = train(f"from{step}", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert whole.keys() == resumed.keys()
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert any(key.endswith("weight_quantizer.amax") for key in whole)


def test_a_resumed_run_asks_for_no_calibration_data(stories: Path, tmp_path: Path) -> None:
    def data(model: torch.nn.Module) -> None:
        runs.append(model)
        model(torch.arange(3, 20)[None])

    runs: list[torch.nn.Module] = []
    for resume in (None, str(tmp_path / "checkpoint-1")):
        trainer = make_trainer(
            stories, tmp_path, callback("INT8_DEFAULT_CFG", calibration=data), steps=2, save_strategy="steps",
            save_steps=1,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)

    assert len(runs) == 1


def test_checkpoints_of_another_recipe_and_of_none(stories: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = {"steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer(stories, tmp_path / "plain", **saving).train()
    make_trainer(stories, tmp_path / "int8", callback("INT8_WEIGHT_ONLY_CFG"), **saving).train()

    with pytest.raises(
        octavo.CheckpointError, match=r"resumes at step 1 from a checkpoint .* without Octavo's"
    ):
        make_trainer(stories, tmp_path, callback(), steps=2).train(
            resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1")
        )
    with pytest.raises(
        octavo.CheckpointError, match="the checkpoint was trained by another recipe: config is"
    ):
        make_trainer(stories, tmp_path, callback(), steps=2).train(
            resume_from_checkpoint=str(tmp_path / "int8" / "checkpoint-1")
        )
