"""A model whose numbers are broken is still measured in JSON."""

from __future__ import annotations

from pathlib import Path

from helpers.cli_runner import MODEL, TEXT, Run


def test_a_broken_model_still_gives_json(octavo_command: Run, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(MODEL, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})

    done = octavo_command("eval", tmp_path / "broken", *TEXT, "--json")

    assert done.code != 0 or done.json["perplexity"] is None
