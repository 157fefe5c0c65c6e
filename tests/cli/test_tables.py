"""What people read: tables that are never cut, whatever the width of the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from helpers.cli_runner import MODEL, TEXT, Run


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def rows(out: str) -> dict[str, str]:
    """Return {first word: the rest} of each line."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.strip()}


def test_inspect(octavo_command: Run, checkpoint: Path) -> None:
    done = octavo_command("inspect", checkpoint, "--verify")

    assert done.code == 0
    assert rows(done.out) == {
        str(checkpoint): "",
        "field": "value",
        rows_separator(done.out): "",
        "dialect": "unified_hf",
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "layers": "FP8: 35",
        "excluded": "lm_head, model.embed_tokens",
        "num_tensors": "127",
        "dtype": "float32",
        "verified": "quantized: 35, other: 12",
        "activations": "45",
    }


def rows_separator(out: str) -> str:
    return next(line.strip() for line in out.splitlines() if set(line.strip()) == {"─"})


def test_eval(octavo_command: Run, checkpoint: Path) -> None:
    done = octavo_command("eval", checkpoint, *TEXT, "--base", MODEL)

    assert done.code == 0
    assert {"num_tokens", "perplexity", "reference_perplexity", "kl", "top1"} <= rows(done.out).keys()
    assert rows(done.out)["num_tokens"] == "62"


def test_presets(octavo_command: Run) -> None:
    shown = rows(octavo_command("presets").out)

    assert set(octavo.preset_names()) <= shown.keys()
    assert shown["FP8_DEFAULT_CFG"] == "model max"
    assert shown["NVFP4_KV_ROTATE_CFG"] == "KV cache max"
    assert [name for name, row in shown.items() if "not available" in row] == []


def test_presets_end_with_what_algorithms_know(octavo_command: Run) -> None:
    shown = rows(octavo_command("presets").out)

    assert shown["gptq"] == "yes yes yes yes yes yes"
    assert shown["hqq"] == "yes yes - - - -"


def test_plugins(octavo_command: Run) -> None:
    shown = rows(octavo_command("plugins").out)

    assert shown["huggingface"] == "built-in Hugging Face transformers models, data and files"
    assert shown["unified_hf"] == "built-in Unified Hugging Face checkpoints in ModelOpt's dialect"


@pytest.mark.parametrize("name", ["out[final]", "out[b]x[", "x[/b]"])
def test_folders_with_brackets_in_their_names(
    octavo_command: Run, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(checkpoint, target_is_directory=True)

    done = octavo_command("inspect", folder)

    assert done.code == 0
    assert "".join(done.out.split()).startswith(str(folder))
