"""Exports equal ModelOpt's checkpoints: names, dtypes, shapes, bytes and metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import octavo
from helpers.reference import BASES, CASES, folder, metadata_of, quantized_model, same_tensor


@pytest.mark.parametrize(("base", "preset"), CASES)
def test_export_equals_the_reference(shared: Path, tmp_path: Path, base: str, preset: str) -> None:
    reference = folder(shared, base) / preset
    octavo.export_hf_checkpoint(
        quantized_model(shared, base, preset), export_dir=tmp_path / "out", quiet=True
    )

    found, expected = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(reference / "model.safetensors"),
    )

    assert found.keys() == expected.keys()
    assert [name for name in expected if not same_tensor(name, found[name], expected[name])] == []
    for file in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert metadata_of(tmp_path / "out" / file) == metadata_of(reference / file)


@pytest.mark.parametrize("base", BASES)
def test_every_reference_that_this_version_can_make_is_a_case(shared: Path, base: str) -> None:
    made_by = {
        path.parent.name: json.loads(path.read_text()) for path in folder(shared, base).glob("*/made_by.json")
    }
    algorithms = {name: made["quant_cfg"]["algorithm"] for name, made in made_by.items()}

    assert {name for name, algorithm in algorithms.items() if algorithm in ("max", None)} == {
        preset for case, preset in CASES if case == base
    }
