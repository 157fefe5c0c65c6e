"""What `save` puts into its folder: safetensors and JSON, each tensor once, the same bytes each time."""

from __future__ import annotations

import json
import pickletools
from pathlib import Path

import pytest
from safetensors.torch import load_file

import octavo
from helpers.calibration_models import two_layers
from helpers.calibration_snapshot import snapshot
from helpers.modes_saved import edit_record, plain, quantized
from octavo.core.errors import ExportError

# The configs are transformers' own, and are not there for a model of plain torch.
FILES = {"model.safetensors", "octavo_modes.json", "config.json", "generation_config.json"}


def test_the_folder_holds_tensors_as_safetensors_and_the_record_as_json(tmp_path: Path) -> None:
    model = quantized()
    octavo.save(model, tmp_path / "saved")

    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    record = json.loads((tmp_path / "saved" / "octavo_modes.json").read_text())
    assert record["version"] == 1
    assert [mode["mode"] for mode in record["modes"]] == ["quantize"]
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "octavo"}


def test_nothing_is_pickled(tmp_path: Path) -> None:
    octavo.save(quantized(), tmp_path / "saved")

    for path in (tmp_path / "saved").iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"PK", b"\x80")), "a zip archive or a pickle"
        with pytest.raises(ValueError, match=r"opcode|pickle|expected|exhausted"):
            list(pickletools.genops(data))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    octavo.save(quantized(tie_word_embeddings=True), tmp_path / "saved")

    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    record = json.loads((tmp_path / "saved" / "octavo_modes.json").read_text())
    assert record["aliases"] == {"lm_head.weight": "model.embed_tokens.weight"}


def test_saving_twice_gives_the_same_bytes_and_changes_nothing(tmp_path: Path) -> None:
    model = quantized()
    before = snapshot(model)

    octavo.save(model, tmp_path / "first")
    octavo.save(quantized(), tmp_path / "second")

    assert snapshot(model) == before
    for folder in ("first", "second"):  # what a run cost is the one thing that differs
        edit_record(tmp_path / folder, lambda record: record["modes"][0]["state"]["report"].pop("cost"))
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_a_folder_that_is_not_empty_is_refused_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")

    message = rf"^{folder} is not empty; give another folder, or overwrite=True \(--overwrite\)$"
    with pytest.raises(ExportError, match=message):
        octavo.save(two_layers(), folder)

    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (folder / "mine.txt").read_text() == "keep"


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    octavo.save(quantized(), tmp_path / "saved")
    (tmp_path / "saved" / "stale.txt").write_text("old")

    octavo.save(plain(), tmp_path / "saved", overwrite=True)

    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    assert octavo.history(octavo.restore(plain(), tmp_path / "saved")) == ()
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_restored_model_can_be_saved_over_the_folder_it_came_from(tmp_path: Path) -> None:
    octavo.save(quantized(), tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").read_bytes()
    model = octavo.restore(plain(), tmp_path / "saved")

    octavo.save(model, tmp_path / "saved", overwrite=True)

    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == before
