"""What lies beside the weights goes along; what describes the old checkpoint does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import octavo
from helpers.conversions import Unified, different
from helpers.exporters_models import json_of

KEPT = {
    "tokenizer.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "modeling_own.py": "# code",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "LICENSE": "words",
}
LEFT = {
    "pytorch_model.bin": "weights",
    "original/consolidated.00.pth": "weights",
    "logits.safetensors": "weights",
    "quantize_config.json": "{}",
    ".git/config": "hidden",
}


def test_files_beside_the_weights(unified: Unified, tmp_path: Path) -> None:
    source = shutil.copytree(unified("INT8"), tmp_path / "unified")
    for name, text in (KEPT | LEFT).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    (tmp_path / "blob").write_text("linked")
    (source / "vocab.json").symlink_to(tmp_path / "blob")  # as in Hugging Face's cache

    octavo.convert_checkpoint(source, tmp_path / "ct", dialect="compressed_tensors", quiet=True)

    out = tmp_path / "ct"
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        *KEPT, "vocab.json", "config.json", "generation_config.json", "model.safetensors", "octavo_manifest.json",
        "octavo_conversion.json",
    }  # fmt: skip
    assert {name: (out / name).read_text() for name in KEPT} == KEPT
    assert not (out / "vocab.json").is_symlink()
    assert (out / "vocab.json").read_text() == "linked"
    before, after = json_of(source / "config.json"), json_of(out / "config.json")
    assert before.pop("quantization_config") != after.pop("quantization_config")
    assert before == after


def test_several_shards(unified: Unified, tmp_path: Path) -> None:
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    octavo.convert_checkpoint(
        unified("INT8"), sharded, dialect="compressed_tensors", quiet=True, max_shard_bytes=100_000
    )
    octavo.convert_checkpoint(unified("INT8"), whole, dialect="compressed_tensors", quiet=True)

    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    assert different(sharded, whole) == []
    octavo.convert_checkpoint(sharded, tmp_path / "back", dialect="unified_hf", quiet=True)
    assert different(tmp_path / "back", unified("INT8")) == []


def test_a_converted_folder_is_replaced_only_when_asked(unified: Unified, tmp_path: Path) -> None:
    for overwrite in (False, True):
        octavo.convert_checkpoint(
            unified("INT8"), tmp_path / "ct", dialect="compressed_tensors", quiet=True, overwrite=overwrite
        )
    octavo.load_quantized(tmp_path / "ct")
