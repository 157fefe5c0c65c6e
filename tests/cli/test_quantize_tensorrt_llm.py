"""`octavo quantize --dialect tensorrt_llm`: checkpoints for TensorRT-LLM's engine builder."""

from __future__ import annotations

from pathlib import Path

from helpers.cli_runner import DATA, MODEL, Run
from helpers.exporters_models import json_of

FP8 = ("quantize", MODEL, "--preset", "FP8_DEFAULT_CFG")
DIALECT = ("--dialect", "tensorrt_llm")


def test_over_ranks_and_for_the_reader(octavo_command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = octavo_command(*FP8, *DATA, *DIALECT, "--target", "trtllm", "--tp", "2", "--out", out, "--json")

    assert done.code == 0
    assert sorted(path.name for path in out.glob("*.safetensors")) == [
        "rank0.safetensors",
        "rank1.safetensors",
    ]
    assert json_of(out / "config.json")["mapping"] == {"world_size": 2, "tp_size": 2, "pp_size": 1}
    assert done.json["exporter"] == "tensorrt_llm"
    assert any("exclude_modules" in text for text in done.json["differences"])


def test_options_that_do_not_go_together(octavo_command: Run, tmp_path: Path) -> None:
    wrong = {
        "unknown --dialect 'tensort_llm'; known: huggingface, tensorrt_llm. Did you mean 'tensorrt_llm'?": (
            "--dialect",
            "tensort_llm",
        ),
        "--pp 2 divides checkpoints of --dialect tensorrt_llm only; found huggingface": ("--pp", "2"),
        "is read by TensorRT-LLM's engine builder (--target trtllm), found --target vllm": (
            *DIALECT,
            "--target",
            "vllm",
        ),
    }
    for message, options in wrong.items():
        done = octavo_command(*FP8, *options, "--out", tmp_path / "out")
        assert done.code != 0
        assert message in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()
