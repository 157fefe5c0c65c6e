"""Checkpoints that are none, damaged or incomplete are refused by folder, file and tensor."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.evaluation_checkpoints import changed_copy, edit_json, quantized
from helpers.model_folders import flip_byte
from helpers.tiny import tiny_llama
from octavo.core.errors import CheckpointError

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint") / "out"
    model = quantized(tiny_llama(torch.bfloat16, num_hidden_layers=1), "FP8_DEFAULT_CFG+FP8_KV_CFG")
    octavo.export_hf_checkpoint(model, export_dir=place, quiet=True)
    return place


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        octavo.load_quantized(folder)


@pytest.mark.parametrize("kind", ["nowhere", "empty", "plain", "a file"])
def test_a_folder_that_is_no_quantized_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "empty":
        folder.mkdir()
    elif kind == "plain":
        tiny_llama(num_hidden_layers=1).save_pretrained(folder)  # type: ignore[operator]
    elif kind == "a file":
        folder.write_text("x")

    where = re.escape(str(folder))
    refused(
        folder,
        f"^{where} is no quantized checkpoint of a known format; "
        "known: awq, compressed_tensors, gptq, tensorrt_llm, unified_hf$",
    )


@pytest.mark.parametrize("name", [f"{Q}.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_missing_tensor_is_named(good: Path, tmp_path: Path, name: str) -> None:
    folder = changed_copy(good, tmp_path / "out", lambda tensors: tensors.pop(name))

    where = re.escape(str(folder))
    refused(folder, f"^{where} does not fit LlamaForCausalLM: missing {re.escape(name)}; unexpected nothing$")


def test_an_unexpected_tensor_is_named(good: Path, tmp_path: Path) -> None:
    folder = changed_copy(
        good, tmp_path / "out", lambda t: t.update({"model.surplus.weight": torch.ones(2, 2)})
    )

    refused(folder, "does not fit LlamaForCausalLM: missing nothing; unexpected model.surplus.weight$")


def test_missing_and_unexpected_tensors_are_counted(good: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for number in range(7):
            tensors[f"surplus.{number}"] = torch.ones(1)
        del tensors["model.norm.weight"]

    folder = changed_copy(good, tmp_path / "out", change)

    refused(folder, r"missing model.norm.weight; unexpected surplus.0, .*surplus.4 and 2 more \(7 in all\)$")


@pytest.mark.parametrize(("name", "found"), [("model.norm.weight", (3,)), (f"{Q}.weight", (64, 128))])
def test_another_shape_is_refused_with_both(
    good: Path, tmp_path: Path, name: str, found: tuple[int, ...]
) -> None:
    folder = changed_copy(
        good, tmp_path / "out", lambda t: t.update({name: torch.zeros(found).to(t[name].dtype)})
    )

    shape, full = re.escape(str(found)), re.escape(str((128,) * len(found)))
    refused(
        folder, rf"^{re.escape(str(folder))}: '{re.escape(name)}' has shape {shape}, the model's has {full}$"
    )


def test_a_damaged_byte_is_named_by_file_and_tensor(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    flip_byte(folder / "model.safetensors")

    refused(folder, rf"^{re.escape(str(folder))}/model.safetensors: tensor '.+' is damaged: its SHA-256 is")


def test_a_truncated_file_is_named(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    refused(folder, rf"^{re.escape(str(path))} cannot be read \(")


def test_a_config_that_does_not_fit_the_weights_is_refused(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    edit_json(folder / "config.json", lambda config: config.update(num_hidden_layers=2))

    refused(
        folder,
        r"does not fit LlamaForCausalLM: missing model.layers.1.self_attn.q_proj.weight.* unexpected nothing$",
    )
