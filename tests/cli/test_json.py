"""--json: stdout is exactly one JSON document, with these keys; what is said to people goes to stderr."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from helpers.cli_runner import DATA, MODEL, TEXT, Run

PLAN_KEYS = {
    "transforms",
    "version",
    "coverage",
    "bytes_before",
    "bytes_after",
    "tensors",
    "other_quantizers",
    "groups",
    "exporter",
    "statistics",
    "errors",
    "warnings",
}
TENSOR_KEYS = {"name", "shape", "dtype", "weight", "inputs", "reason", "bytes_before", "bytes_after"}


def test_quantize(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command(
        "quantize", MODEL, "--preset", "FP8_DEFAULT_CFG", *DATA, "--out", tmp_path / "out", "--json"
    )

    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert done.code == 0
    assert done.json == {
        "directory": str(tmp_path / "out"),
        "num_tensors": 117,
        "num_bytes": 379928,
        "warnings": [],
        "exporter": "unified_hf",
        "differences": [],
    }
    assert 379928 < size < 379928 + 20_000, "the file holds these bytes and a header"
    assert "octavo: 35 weights quantized, 88.0% of all parameters" in done.err


def test_quantize_warnings(octavo_command: Run, tmp_path: Path) -> None:
    done = octavo_command(
        "quantize", MODEL, "--preset", "MXFP6_DEFAULT_CFG", "--out", tmp_path / "out", "--json"
    )

    assert done.json["warnings"] == ["no serving engine reads MXFP6 yet; Octavo does"]
    assert "octavo: warning: no serving engine reads MXFP6 yet; Octavo does\n" in done.err


def test_quantize_for_an_engine(octavo_command: Run, tmp_path: Path) -> None:
    fp8 = ("quantize", MODEL, "--preset", "FP8_DEFAULT_CFG", *DATA, "--out", tmp_path / "out")
    done = octavo_command(*fp8, "--target", "vllm", "--json")

    differences = done.json["differences"]
    assert len(differences) >= 5 * 2  # of each of five blocks, a projection of both groups at least
    assert all(": amax " in text and " instead of " in text for text in differences)
    assert f"octavo: for vllm: {differences[0]}\n" in done.err

    refused = octavo_command(*fp8[:-1], tmp_path / "other", "--target", "vllm", "--tp", "3")
    assert refused.code == 3
    assert "8 attention heads cannot be split over tp=3" in refused.err
    assert not (tmp_path / "other").exists()


def test_plan(octavo_command: Run) -> None:
    done = octavo_command("plan", MODEL, "--preset", "NVFP4_DEFAULT_CFG", "--target", "vllm", "--json")

    assert (done.code, done.err) == (0, "")
    assert done.json.keys() == PLAN_KEYS
    assert {frozenset(tensor) for tensor in done.json["tensors"]} == {frozenset(TENSOR_KEYS)}
    assert sum(bool(tensor["weight"]) for tensor in done.json["tensors"]) == 35
    assert len(done.json["groups"]) == 2 * 5


def test_a_plan_that_refuses_is_still_one_document(octavo_command: Run) -> None:
    done = octavo_command("plan", MODEL, "--preset", "W4A8_MXFP4_FP8_CFG", "--target", "vllm", "--json")

    assert (done.code, done.err) == (3, "")
    assert len(done.json["errors"]) == 1


@pytest.mark.parametrize("options", [(), ("--verify",)], ids=["plain", "verify"])
def test_inspect(octavo_command: Run, checkpoint: Path, options: tuple[str, ...]) -> None:
    done = octavo_command("inspect", checkpoint, *options, "--json")
    verified = {"verified": {"quantized": 35, "other": 12}, "activations": 45} if options else {}

    assert (done.code, done.err) == (0, "")
    assert done.json == {
        "dialect": "unified_hf",
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "layers": {"FP8": 35},
        "excluded": ["lm_head", "model.embed_tokens"],
        "num_tensors": 127,
        "dtype": "float32",
        **verified,
    }


def test_eval(octavo_command: Run, checkpoint: Path) -> None:
    done = octavo_command("eval", checkpoint, *TEXT, "--json")

    assert done.code == 0
    assert done.json.keys() == {"directory", "text", "perplexity"}
    assert 1 < done.json["perplexity"] < 20


def test_eval_against_a_base(octavo_command: Run, checkpoint: Path) -> None:
    done = octavo_command("eval", checkpoint, *TEXT, "--base", MODEL, "--json")
    alone = octavo_command("eval", MODEL, *TEXT, "--json")

    assert done.json.keys() == {
        "directory", "text", "num_tokens", "perplexity", "reference_perplexity", "kl", "top1"
    }  # fmt: skip
    assert done.json["reference_perplexity"] == alone.json["perplexity"]
    assert done.json["num_tokens"] == 2 * 31
    assert 0 < done.json["kl"] < 0.2
    assert 0.8 < done.json["top1"] <= 1


def test_presets(octavo_command: Run) -> None:
    done = octavo_command("presets", "--json")
    rows = {row["name"]: row for row in done.json}

    assert (done.code, done.err) == (0, "")
    assert list(rows) == octavo.preset_names()
    assert rows["FP8_DEFAULT_CFG"] == {
        "name": "FP8_DEFAULT_CFG",
        "kind": "model",
        "algorithm": "max",
        "missing": None,
    }
    assert rows["NVFP4_KV_CFG"] == {
        "name": "NVFP4_KV_CFG",
        "kind": "KV cache",
        "algorithm": None,
        "missing": None,
    }
    assert [name for name, row in rows.items() if row["missing"]] == []


def test_plugins(octavo_command: Run) -> None:
    done = octavo_command("plugins", "--json")
    rows = {row["name"]: row for row in done.json}

    assert (done.code, done.err) == (0, "")
    assert rows["huggingface"] == {
        "name": "huggingface",
        "origin": "built-in",
        "summary": "Hugging Face transformers models, data and files",
        "requires": ["transformers"],
        "error": None,
    }
    assert rows["unified_hf"]["requires"] == []
