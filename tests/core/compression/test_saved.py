"""Packed weights saved, and restored on a plain model or read by `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.calibration_snapshot import same_bits, snapshot
from helpers.compressed_models import FORMATS, quantized_llama
from helpers.exporters_models import digests
from helpers.modes_saved import edit_record, edit_tensors, logits, scrambled
from octavo.core.errors import CheckpointError, ModeError


@pytest.mark.parametrize("name", ["int8", "nvfp4", "mxfp6", "int4 then fp8", "smoothed int4", "low rank"])
def test_it_is_restored_and_exported_as_it_was(name: str, tmp_path: Path) -> None:
    model = octavo.compress(quantized_llama(FORMATS[name]), quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(scrambled(dtype=torch.bfloat16), tmp_path / "saved")

    assert same_bits(logits(restored), logits(model))
    assert octavo.history(restored)[-1].mode == "compress"
    for one, folder in ((model, "first"), (restored, "second")):
        octavo.export_hf_checkpoint(one, export_dir=tmp_path / folder, quiet=True)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_neutral_numbers_are_restored_as_such(tmp_path: Path) -> None:
    model = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), "*mlp*", dialect="neutral", quiet=True)
    octavo.save(model, tmp_path / "saved")

    restored = octavo.restore(scrambled(dtype=torch.bfloat16), tmp_path / "saved")

    assert same_bits(logits(restored), logits(model))
    octavo.compress(restored, dialect="neutral", quiet=True)
    assert same_bits(logits(restored), logits(model))


def test_the_file_holds_codes_and_no_weights(tmp_path: Path) -> None:
    model = octavo.compress(quantized_llama("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"), quiet=True)
    octavo.save(model, tmp_path / "saved")

    tensors = load_file(tmp_path / "saved" / "model.safetensors")

    own = {name: tensor for name, tensor in tensors.items() if "mlp.up_proj" in name}
    assert {name.rpartition("up_proj.")[2]: tensor.shape for name, tensor in own.items()} == {
        "weight_packed.payload": (256, 64),
        "weight_packed.scale": (256, 1, 4),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda layers: layers.update({"model.layers.7": {}}),
            ModeError,
            "'model.layers.7'.* no such quantized layer",
        ),
        (
            lambda layers: layers["model.layers.0.mlp.up_proj"].update(bias={}),
            ModeError,
            "packed 'bias' of 'model.layers.0.mlp.up_proj', whose weights are weight",
        ),
        (
            lambda layers: layers["model.layers.0.mlp.up_proj"]["weight"].pop("shape"),
            CheckpointError,
            "up_proj.weight has no 'shape'",
        ),
        (
            lambda layers: layers["model.layers.0.mlp.up_proj"]["weight"].update(dtype="int8"),
            CheckpointError,
            "dtype must name a float dtype of torch, found 'int8'",
        ),
        (
            lambda layers: layers["model.layers.0.mlp.up_proj"]["weight"].update(shape=[256, 64]),
            CheckpointError,
            r"up_proj.weight_packed.payload' has shape \(256, 128\), the model's has \(256, 64\)",
        ),
    ],
    ids=["layer", "weight", "part", "dtype", "shape"],
)
def test_a_damaged_record_is_named_and_nothing_is_changed(
    change: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    octavo.save(octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), quiet=True), tmp_path / "saved")
    edit_record(tmp_path / "saved", lambda record: change(record["modes"][1]["state"]["layers"]))
    model = scrambled(dtype=torch.bfloat16)
    before = snapshot(model)

    with pytest.raises(error, match=message):
        octavo.restore(model, tmp_path / "saved")

    assert snapshot(model) == before


def test_missing_codes_are_named(tmp_path: Path) -> None:
    octavo.save(octavo.compress(quantized_llama("NVFP4_DEFAULT_CFG"), quiet=True), tmp_path / "saved")
    name = "model.layers.0.mlp.up_proj.weight_packed.global_scale"
    edit_tensors(tmp_path / "saved", lambda tensors: tensors.pop(name))

    with pytest.raises(CheckpointError, match=f"missing '{name}'"):
        octavo.restore(scrambled(dtype=torch.bfloat16), tmp_path / "saved")
