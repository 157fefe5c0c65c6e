"""Models and checkpoints that are damaged: exit codes 4 and 5, and what is wrong with which file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.cli_runner import MODEL, Run

INT8 = ("--preset", "INT8_WEIGHT_ONLY_CFG")


def test_weights_that_are_no_numbers_exit_with_4(octavo_command: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})

    done = octavo_command("quantize", tmp_path / "model", *INT8, "--out", tmp_path / "out")

    assert done.code == 4
    assert (
        "octavo: error: 1 quantizers saw NaN or infinite values: model.layers.3.mlp.up_proj.weight_quantizer"
        in done.err
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "/model.safetensors cannot be read .*the file is missing, cut short or damaged"),
        ("changed byte", "/model.safetensors: tensor 'model.layers.4.* is damaged: its SHA-256 is "),
        ("outside", "tensor 'a' is said to be in '../model.safetensors', outside the folder"),
        (
            "no metadata",
            "is no quantized checkpoint of a known format; "
            "known: awq, compressed_tensors, gptq, tensorrt_llm, unified_hf",
        ),
    ],
)
def test_checkpoints_that_cannot_be_read_exit_with_5(
    octavo_command: Run, checkpoint: Path, tmp_path: Path, damage: str, message: str
) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint, directory)
    shard = directory / "model.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "changed byte":
        data[-10] ^= 1
        shard.write_bytes(data)
    elif damage == "outside":
        index = {"weight_map": {"a": "../model.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        shutil.copy(MODEL / "config.json", directory)
        (directory / "hf_quant_config.json").unlink()

    done = octavo_command("inspect", directory, "--verify", "--json")

    assert (done.code, done.out) == (5, "")
    assert re.search(f"^octavo: error: {directory}.*{message}", done.err, re.MULTILINE), done.err


@pytest.mark.parametrize("damage", ["truncated weights", "no tokenizer"])
def test_a_damaged_base_model_exits_with_5(octavo_command: Run, damage: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    if damage == "no tokenizer":
        (model / "tokenizer.json").unlink()
    else:
        (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])

    done = octavo_command("quantize", model, *INT8, "--out", tmp_path / "out")

    assert done.code == 5
    assert str(model) in done.err
