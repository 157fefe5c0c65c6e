"""Resharding turns ModelOpt's checkpoints of one rank and of four into each other, file by file and byte by byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import octavo
from helpers.tensorrt_llm_reference import PRESETS

ONE, FOUR = "tp1pp1", "tp2pp2"


def files(directory: Path) -> dict[str, bytes]:
    """What TensorRT-LLM reads of a checkpoint."""
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith("octavo_")
    }


@pytest.fixture(scope="module")
def references(shared: Path) -> Path:
    return shared / "reference" / "modelopt" / "dense-trtllm"


@pytest.mark.parametrize("preset", PRESETS)
def test_four_ranks_to_one(references: Path, tmp_path: Path, preset: str) -> None:
    report = octavo.reshard_tensorrt_llm(references / preset / FOUR, tmp_path / "out")

    assert files(tmp_path / "out") == files(references / preset / ONE)
    assert report.num_bytes == (references / preset / ONE / "rank0.safetensors").stat().st_size


@pytest.mark.parametrize("preset", PRESETS)
def test_one_rank_to_four(references: Path, tmp_path: Path, preset: str) -> None:
    octavo.reshard_tensorrt_llm(references / preset / ONE, tmp_path / "out", tp_size=2, pp_size=2)

    assert files(tmp_path / "out") == files(references / preset / FOUR)


@pytest.mark.parametrize("preset", PRESETS)
def test_any_layout_to_any(references: Path, tmp_path: Path, preset: str) -> None:
    """Over layouts with one rank of a kind; blocks of 128 inputs do not divide over more than two ranks."""
    wide = 2 if "AWQ" in preset else 8  # eight ranks repeat the four key/value heads
    octavo.reshard_tensorrt_llm(references / preset / FOUR, tmp_path / "wide", tp_size=wide)
    octavo.reshard_tensorrt_llm(tmp_path / "wide", tmp_path / "deep", pp_size=2)
    octavo.reshard_tensorrt_llm(tmp_path / "deep", tmp_path / "out", tp_size=2, pp_size=2)

    assert files(tmp_path / "out") == files(references / preset / FOUR)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_independent_merger_finds_no_problem(
    references: Path, tmp_path: Path, merger: ModuleType, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    octavo.reshard_tensorrt_llm(references / preset / FOUR, tmp_path / preset / "whole")
    octavo.reshard_tensorrt_llm(
        tmp_path / preset / "whole", tmp_path / preset / "split", tp_size=2, pp_size=2
    )

    assert merger.main([str(tmp_path), "--whole", "whole", "--split", "split"]) == 0
    assert "TOTAL 1 checkpoints: {'equal'" in capsys.readouterr().out


@pytest.fixture(scope="module")
def merger(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "trtllm_shards", shared / "specs" / "feasibility" / "trtllm_shards.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
