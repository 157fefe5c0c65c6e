"""`octavo reshard`."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.cli_runner import Run
from helpers.trtllm_checkpoints import config_of, tensors_of, write_one_rank


def test_it_divides_and_says_so(octavo_command: Run, tmp_path: Path) -> None:
    config = config_of("mixtral", "FP8")
    source = write_one_rank(tmp_path / "one", config, tensors_of(config))
    sizes = ("--tp", "4", "--pp", "2", "--ep", "2")

    result = octavo_command("reshard", str(source), *sizes, "--out", str(tmp_path / "many"))

    assert result.code == 0
    assert f"{tmp_path / 'many'}: 8 ranks, " in result.out
    mapping = json.loads((tmp_path / "many" / "config.json").read_text())["mapping"]
    assert mapping == {"world_size": 8, "tp_size": 4, "pp_size": 2, "moe_tp_size": 2, "moe_ep_size": 2}

    result = octavo_command("reshard", str(tmp_path / "many"), "--out", str(tmp_path / "back"), "--json")

    assert result.code == 0
    said = result.json
    assert said["num_bytes"] == (tmp_path / "back" / "rank0.safetensors").stat().st_size
    assert said["num_tensors"] == len(tensors_of(config))


def test_what_is_no_such_checkpoint_is_refused(octavo_command: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = octavo_command("reshard", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))

    assert result.code == 5
    assert "config.json cannot be read as JSON" in result.err
