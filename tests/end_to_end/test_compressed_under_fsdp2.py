"""A compressed model under FSDP2, on two real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.launcher import run_on_two_ranks

CONFIGS = ["NVFP4", "INT8", "W4A8"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_on_two_ranks("fsdp2_compressed", tmp_path_factory.mktemp("fsdp2"), *CONFIGS)


@pytest.mark.launcher
@pytest.mark.parametrize("config", CONFIGS)
def test_adapters_train_past_sharded_codes_as_in_one_process(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]

    assert outcome["logits"], "the same bits as in one process"
    assert outcome["losses"] == pytest.approx(outcome["expected losses"], rel=1e-6)
    assert outcome["losses"][1] < outcome["losses"][0]
    assert outcome["adapters"] < 1e-4, "largest difference, as a part of the largest value"
    assert outcome["still"] == [], "adapters that did not move"


@pytest.mark.launcher
@pytest.mark.parametrize("config", CONFIGS)
def test_the_state_dict_of_all_ranks_is_that_of_one_process(outcomes: Any, config: str) -> None:
    outcome = outcomes[config]

    assert outcome["names"]
    assert outcome["changed"] == [], "codes and scales that training touched"
    assert outcome["reloaded"], "the state dict from before training, loaded: the same bits"


@pytest.mark.launcher
@pytest.mark.parametrize("config", CONFIGS)
def test_each_rank_holds_half_of_the_codes(outcomes: Any, config: str) -> None:
    outside = outcomes[config]["outside"]

    assert outcomes[config]["share"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert outside["shape"] == [192, 64]
    assert outside["dtype"] == "torch.float32"
    assert "FSDP2 has its codes sharded among ranks; call unshard()" in outside["error"]


@pytest.mark.launcher
@pytest.mark.parametrize("config", CONFIGS)
def test_mixed_precision_leaves_scales_alone(outcomes: Any, config: str) -> None:
    assert outcomes[config]["mixed precision"]


@pytest.mark.launcher
@pytest.mark.parametrize("config", CONFIGS)
def test_what_needs_whole_weights_is_refused(outcomes: Any, config: str) -> None:
    outside = outcomes[config]["outside"]

    for verb in ("decompress", "save"):
        assert "parameters are sharded (first 'model." in outside[verb]
    assert "ZeRO-3 or another wrapper shards the model" in outside["decompress"]
    assert "save the model before it is sharded" in outside["save"]
