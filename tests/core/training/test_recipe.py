"""Resuming: which checkpoints fit, and which are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.training_models import INT4_G16, Loop, Net


def checkpoint(**options: Any) -> dict[str, Any]:
    return copy.deepcopy(Loop(**options).begin().run(0, 1).saved())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_scales": "recomputed"}, r'weight_scales is "held" there and "recomputed" here'),
        ({"schedule": octavo.Schedule(ramp=3)}, r'schedule is .*"ramp": 0.* there and .*"ramp": 3.* here'),
        ({"config": octavo.with_block_size(INT4_G16, 32)}, r"trained by another recipe: config is "),
        ({"config": "INT8_DEFAULT_CFG"}, r"trained by another recipe: config is "),
    ],
    ids=["scales", "schedule", "blocks", "format"],
)
def test_a_checkpoint_of_another_recipe(options: dict[str, Any], message: str) -> None:
    with pytest.raises(octavo.CheckpointError, match=message):
        Loop(**options).resume(checkpoint(), 1)


def test_a_checkpoint_without_quantizers() -> None:
    loop = Loop()
    loop.model.load_state_dict(Net().state_dict(), strict=False)

    with pytest.raises(
        octavo.CheckpointError, match=r"resumes at step 4 .* made without Octavo's quantizers"
    ):
        loop.training.begin(4)


def test_a_checkpoint_with_scales_under_other_names() -> None:
    saved = checkpoint()
    saved["model"] = {name.replace("second.", "middle."): tensor for name, tensor in saved["model"].items()}

    with pytest.raises(
        octavo.CheckpointError,
        match=r"scales of 2 quantizers were not loaded: second\.weight_quantizer, second\.input_quantizer\. The",
    ):
        Loop().resume(saved, 1)


def test_a_damaged_recipe() -> None:
    saved = checkpoint()
    saved["model"]["octavo_recipe"] = torch.zeros(4, dtype=torch.uint8)

    with pytest.raises(octavo.CheckpointError, match="octavo_recipe is damaged"):
        Loop().resume(saved, 1)


@pytest.mark.parametrize("preset", ["INT8_SMOOTHQUANT_CFG", "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG"])
def test_what_an_algorithm_made_is_resumed_without_running_it(preset: str) -> None:
    def run(loop: Loop) -> dict[str, Tensor]:
        return loop.model.state_dict()

    whole = run(Loop(preset).begin().run(0, 3))
    resumed = run(Loop(preset).resume(checkpoint(config=preset), 1).run(1, 3))

    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
