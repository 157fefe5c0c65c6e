"""`octavo verify`."""

from __future__ import annotations

from pathlib import Path

from helpers.cli_runner import Run
from helpers.verification import damaged


def test_findings_and_exit_codes(octavo_command: Run, checkpoint: Path, tmp_path: Path) -> None:
    whole = octavo_command("verify", checkpoint, "--consumer", "sglang", "--json")
    assert (whole.code, whole.json["errors"], whole.json["consumer"]) == (0, 0, "sglang")

    name = "model.layers.0.self_attn.k_proj.input_scale"
    broken = damaged(checkpoint, tmp_path / "copy", lambda tensors: tensors.pop(name))
    shown = octavo_command("verify", broken, "--consumer", "vllm")
    assert shown.code == 1
    assert f"error: {name}: found no such tensor" in shown.out
    assert shown.out.splitlines()[-1].startswith(f"{broken} for vllm: 1 errors, ")
    found = octavo_command("verify", broken, "--consumer", "vllm", "--json").json
    assert found["findings"][0] == {
        "severity": "error",
        "place": name,
        "found": "no such tensor",
        "expected": "F32 scalar",
        "advice": "Copy or export the checkpoint again.",
    }
    assert found["warnings"] == len(found["findings"]) - 1


def test_refusals(octavo_command: Run, checkpoint: Path, tmp_path: Path) -> None:
    unknown = octavo_command("verify", checkpoint, "--consumer", "tgi")
    assert (unknown.code, "unknown target 'tgi'; known: vllm" in unknown.err) == (3, True)
    empty = octavo_command("verify", tmp_path, "--consumer", "vllm")
    assert (empty.code, "is no quantized checkpoint of a dialect that is verified" in empty.err) == (5, True)
    assert octavo_command("verify", checkpoint).code == 2
