"""README's Python snippet runs as it is printed, on the bundled model and little text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from helpers.cli_runner import MODEL, ROOT

TEXT = "Once upon a time there was a little dog who liked to play in the park with Lily. " * 20


def test_the_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("calibration.txt", "test.txt"):
        (tmp_path / name).write_text(TEXT)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From Python")[2]
    (snippet, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    exec(snippet.replace("path/to/model", str(MODEL)), names)

    printed = capsys.readouterr().out.splitlines()
    assert "weights quantized" in printed[0]
    assert 1 < float(printed[-1]) < 2000
    assert (tmp_path / "out" / "hf_quant_config.json").is_file()
    original, model = AutoModelForCausalLM.from_pretrained(MODEL).state_dict(), names["model"]
    assert model.state_dict().keys() == original.keys()  # type: ignore[attr-defined]
