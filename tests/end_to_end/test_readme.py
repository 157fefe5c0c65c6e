"""README's Python snippets run as they are printed, on the bundled model and little text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

import octavo
from helpers.cli_runner import MODEL, ROOT

TEXT = "Once upon a time there was a little dog who liked to play in the park with Lily. " * 20


def snippet(title: str) -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {title}\n")[2]
    found: str = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    return found


def test_the_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("calibration.txt", "test.txt"):
        (tmp_path / name).write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    exec(snippet("From Python").replace("path/to/model", str(MODEL)), names)

    printed = capsys.readouterr().out.splitlines()
    assert "weights quantized" in printed[0]
    assert 1 < float(printed[-1]) < 2000
    assert (tmp_path / "out" / "hf_quant_config.json").is_file()
    original, model = AutoModelForCausalLM.from_pretrained(MODEL).state_dict(), names["model"]
    assert model.state_dict().keys() == original.keys()  # type: ignore[attr-defined]


def test_one_run_three_dialects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    octavo.quantize(model, octavo.FP8_DEFAULT_CFG, [torch.arange(3, 99)[None]], quiet=True)

    exec(snippet("One run, three dialects"), {"octavo": octavo, "model": model})

    share, *verdicts = capsys.readouterr().out.splitlines()
    assert 20 < int(share.removesuffix("% of the codes changed")) < 40
    assert verdicts == [
        "compressed has nothing wrong for transformers",
        "trtllm_on_4 has nothing wrong for trtllm",
        "for_vllm has nothing wrong for vllm",
    ]


def test_training_with_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = torch.arange(3, 67)
    names = {
        "octavo": octavo,
        "model": AutoModelForCausalLM.from_pretrained(MODEL),
        "dataset": [{"input_ids": ids, "labels": ids.clone()}] * 8,
        "arguments": TrainingArguments(
            "checkpoints",
            max_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
    }

    exec(snippet("Training with rounding"), names)

    assert octavo.verify_checkpoint("trained", "vllm") == []
