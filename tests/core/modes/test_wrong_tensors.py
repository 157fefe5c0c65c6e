"""Tensors that are missing, unexpected, of another shape or damaged are refused, and nothing is changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.modes_saved import edit_tensors, plain, quantized
from octavo.core.errors import CheckpointError

AMAX = "model.layers.0.mlp.up_proj.input_quantizer.amax"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes") / "saved"
    octavo.save(quantized(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "saved"))


def refused(folder: Path, message: str, model: nn.Module | None = None) -> None:
    """Restoring fails with `message`, and the plain model is as it was: classes, attention, weights."""
    model = model or plain()
    with torch.no_grad():
        model.get_parameter(NORM).fill_(0.5)  # so that a load that began would show
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        octavo.restore(model, folder)
    assert snapshot(model) == before
    assert octavo.history(model) == ()


@pytest.mark.parametrize("name", [AMAX, NORM, "lm_head.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(name))

    where = re.escape(str(folder))
    refused(folder, f"^{where} does not fit this LlamaForCausalLM: missing '{re.escape(name)}'$")


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.extra": torch.ones(2)}))

    refused(folder, "does not fit this LlamaForCausalLM: unexpected 'model.extra'$")


@pytest.mark.parametrize(("name", "wrong", "right"), [(AMAX, (3,), r"\(\)"), (NORM, (127,), r"\(128,\)")])
def test_another_shape_is_named_with_both_shapes(folder: Path, name: str, wrong: Any, right: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(wrong)}))

    refused(folder, rf": '{name}' has shape {re.escape(str(wrong))}, the model's has {right}$")


def test_all_problems_are_counted_and_the_first_named(folder: Path) -> None:
    names = [f"model.extra{number}" for number in range(7)]
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(1) for name in names}))

    refused(folder, r"unexpected 'model.extra0', .*'model.extra4' and 2 more \(7 in all\)$")


def test_a_model_of_another_size_is_refused(folder: Path) -> None:
    model = plain(vocab_size=32)

    message = (
        r"'model.embed_tokens.weight' has shape \(64, 128\), the model's has \(32, 128\), 'lm_head.weight'"
    )
    refused(folder, message, model)


def test_a_model_of_another_size_that_also_changes_quantizers_is_refused(folder: Path) -> None:
    model = plain(head_dim=64)

    refused(
        folder,
        r"'model.layers.0.self_attn.q_proj.weight' has shape \(128, 128\), the model's has \(256, 128\)",
        model,
    )


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_a_damaged_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-7], "header": b"\xff" * 8 + data[8:], "empty": b""}[damage])

    refused(folder, f"^{re.escape(str(path))} cannot be read ")


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    refused(
        folder, f"^{re.escape(str(folder))} holds neither model.safetensors nor model.safetensors.index.json"
    )


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    octavo.save(quantized(), tmp_path / "saved", max_shard_bytes=100_000)
    gone = sorted((tmp_path / "saved").glob("*.safetensors"))[1]
    gone.unlink()

    refused(tmp_path / "saved", f"^{re.escape(str(gone))} cannot be read ")


def test_a_missing_tensor_that_another_is_tied_to_is_named(tmp_path: Path) -> None:
    octavo.save(quantized(tie_word_embeddings=True), tmp_path / "saved")
    edit_tensors(tmp_path / "saved", lambda tensors: tensors.pop("model.embed_tokens.weight"))

    refused(tmp_path / "saved", "missing 'model.embed_tokens.weight'", plain(tie_word_embeddings=True))


def test_an_interrupt_before_the_tensors_are_loaded_leaves_the_plain_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain()
    before = snapshot(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.safe_open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        octavo.restore(model, folder)

    assert snapshot(model) == before
