"""A compressed model under DeepSpeed's ZeRO-3, on two real ranks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from helpers.launcher import run_on_two_ranks

CONFIGS = ["NVFP4", "W4A8"]

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_on_two_ranks("zero3_compressed", tmp_path_factory.mktemp("zero3"), *CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_adapters_train_past_sharded_codes_as_in_one_process(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]

    assert outcome["logits"], "the same bits as in one process"
    assert outcome["losses"] == pytest.approx(outcome["expected losses"], rel=1e-6)
    assert outcome["losses"][1] < outcome["losses"][0]


@pytest.mark.parametrize("config", CONFIGS)
def test_checkpoints_carry_codes_and_adapters(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]

    assert outcome["reloaded"], "another engine that loaded the checkpoint: the same bits"
    assert outcome["changed"] == [], "codes and scales of the consolidated state dict"


@pytest.mark.parametrize("config", CONFIGS)
def test_each_rank_holds_half_of_the_codes(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]

    assert outcome["share"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert outcome["outside"]["shape"] == [192, 64]
    assert "found a payload of shape (0,); under ZeRO-3 use" in outcome["outside"]["error"]
    assert outcome["outside"]["gathered"] == outcome["values"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bfloat16_engine_over_fp32_leaves_scales_alone(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]["bfloat16"]

    assert outcome["same"]
    assert outcome["losses"][2] < outcome["losses"][1] < outcome["losses"][0]


@pytest.mark.parametrize("config", CONFIGS)
def test_what_needs_whole_weights_is_refused(outcomes: Any, config: str) -> None:
    outside = outcomes[config]["outside"]

    for verb in ("decompress", "save"):
        assert "parameters are sharded (first 'model." in outside[verb]
    assert "ZeRO-3 or another wrapper shards the model" in outside["decompress"]
    assert "save the model before it is sharded" in outside["save"]
