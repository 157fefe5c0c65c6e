"""`octavo convert` and its options, by what is then in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.cli_runner import MODEL, Run
from helpers.conversions import different
from helpers.exporters_models import json_of, tensors_of

INT8 = ("--preset", "INT8_WEIGHT_ONLY_CFG", "--quiet")


@pytest.fixture
def source(octavo_command: Run, tmp_path: Path) -> Path:
    """An INT8 checkpoint of the bundled model, fp32, in ModelOpt's dialect."""
    octavo_command("quantize", MODEL, *INT8, "--out", tmp_path / "unified")
    return tmp_path / "unified"


def test_a_dialect_and_back(octavo_command: Run, source: Path, tmp_path: Path) -> None:
    done = octavo_command("convert", source, tmp_path / "ct", "--to", "compressed_tensors")

    assert (done.code, done.err) == (0, "")
    head, tail = done.out.split(" MB, ")
    assert head.startswith(f"{tmp_path / 'ct'}: {len(tensors_of(tmp_path / 'ct'))} tensors, 0.3")
    assert tail == "from unified_hf to compressed_tensors; 0.00% of the codes changed\n"
    assert json_of(tmp_path / "ct" / "config.json")["quantization_config"]["format"] == "pack-quantized"
    assert (tmp_path / "ct" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    back = octavo_command("convert", tmp_path / "ct", tmp_path / "back", "--to", "unified_hf", "--quiet")
    assert (back.code, back.out, back.err) == (0, "", "")
    assert different(source, tmp_path / "back") == []


def test_a_target_picks_the_dialect_it_loads(octavo_command: Run, source: Path, tmp_path: Path) -> None:
    done = octavo_command("convert", source, tmp_path / "out", "--target", "vllm", "--json")
    octavo_command("quantize", MODEL, *INT8, "--target", "vllm", "--out", tmp_path / "direct")

    assert done.json == {
        "directory": str(tmp_path / "out"),
        "dialect": "compressed_tensors",
        "source_dialect": "unified_hf",
        "num_tensors": len(tensors_of(tmp_path / "out")),
        "num_bytes": sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values()),
        "changes": [],
        "share_of_codes": 0.0,
        "warnings": [],
    }
    assert different(tmp_path / "out", tmp_path / "direct") == []
    assert (
        json_of(tmp_path / "out" / "config.json")["quantization_config"]
        == (json_of(tmp_path / "direct" / "config.json")["quantization_config"])
    )


def test_lossy(octavo_command: Run, checkpoint: Path, tmp_path: Path) -> None:
    """FP8 for vLLM has one scale for q, k and v, which this checkpoint of the bundled model does not have."""
    refused = octavo_command("convert", checkpoint, tmp_path / "out", "--target", "vllm")
    written = octavo_command("convert", checkpoint, tmp_path / "out", "--target", "vllm", "--lossy", "--json")

    assert refused.code == 5
    assert "unified_hf cannot hold 15 tensors exactly" in refused.err
    assert "lossy=True (--lossy) writes the nearest numbers" in refused.err
    assert "octavo: warning: unified_hf cannot hold 15 tensors exactly" in written.err
    assert len(written.json["changes"]) == 15
    assert 0 < written.json["share_of_codes"] < 1


def test_to_and_from_tensorrt_llm(octavo_command: Run, tmp_path: Path) -> None:
    octavo_command("quantize", MODEL, *INT8, "--dtype", "bfloat16", "--out", tmp_path / "unified")
    to = ("--to", "tensorrt_llm", "--tp", "2", "--pp", "5")

    done = octavo_command("convert", tmp_path / "unified", tmp_path / "trtllm", *to, "--quiet")
    refused = octavo_command("convert", tmp_path / "trtllm", tmp_path / "back", "--to", "unified_hf")
    back = octavo_command(
        "convert", tmp_path / "trtllm", tmp_path / "back", "--to", "unified_hf", "--config", MODEL, "--json"
    )

    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(list((tmp_path / "trtllm").glob("rank*.safetensors"))) == 10
    assert (refused.code, "(config, --config)" in refused.err) == (3, True)
    assert (back.code, back.json["source_dialect"]) == (0, "tensorrt_llm")
    original, returned = tensors_of(tmp_path / "unified"), tensors_of(tmp_path / "back")
    assert all(torch.equal(returned[name], tensor) for name, tensor in original.items())
    tokenizers = [(tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("unified", "back")]
    assert tokenizers[0] == tokenizers[1]


def test_exit_codes(octavo_command: Run, source: Path, tmp_path: Path) -> None:
    for code, arguments in {
        2: ("convert", source),
        3: ("convert", source, tmp_path / "out", "--to", "compresed_tensors"),
        5: ("convert", MODEL, tmp_path / "out", "--to", "compressed_tensors"),
    }.items():
        assert octavo_command(*arguments).code == code
    assert not (tmp_path / "out").exists()
