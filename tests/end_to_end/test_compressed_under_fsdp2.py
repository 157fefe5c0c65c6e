"""A compressed model under FSDP2, on two real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.launcher import run_on_two_ranks

PRESETS = ["W4A16_NVFP4_CFG", "INT8_DEFAULT_CFG", "W4A8_AWQ_BETA_CFG"]


@pytest.mark.launcher
def test_adapters_train_past_sharded_codes_as_in_one_process(tmp_path: Path) -> None:
    result = run_on_two_ranks("fsdp2_compressed", tmp_path, *PRESETS)

    assert list(result) == PRESETS
    for preset, outcome in result.items():
        assert outcome["logits"], f"{preset}: the same bits before training"
        assert outcome["losses"] == pytest.approx(outcome["expected losses"], rel=1e-5), preset
        assert outcome["losses"][1] < outcome["losses"][0], preset
        assert outcome["names"], preset
        assert outcome["unchanged"] == [], f"{preset}: codes and scales that changed"
        assert outcome["moved"] == [], f"{preset}: adapters that did not"
        assert outcome["adapters"] < 1e-3, preset
        assert outcome["reloaded"], f"{preset}: the state dict from before, loaded"
        assert outcome["mixed precision"], f"{preset}: scales are not rounded to bfloat16"


@pytest.mark.launcher
def test_each_rank_holds_half_of_the_codes(tmp_path: Path) -> None:
    result = run_on_two_ranks("fsdp2_compressed", tmp_path, "W4A16_NVFP4_CFG")["W4A16_NVFP4_CFG"]

    assert result["share"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert result["outside"]["shape"] == [172, 64]
    assert result["outside"]["dtype"] == "torch.float32"
    assert "FSDP2 has its codes sharded among ranks; call unshard()" in result["outside"]["error"]
