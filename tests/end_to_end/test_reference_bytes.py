"""Exports equal ModelOpt's checkpoints: names, dtypes, shapes, bytes and metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from helpers.reference import BASES, CASES, folder, quantized_model

# Derived from activations, whose last bits follow the machine's matrix kernels.
ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale")


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
    assert [name for name in expected if not _same(name, found[name], expected[name])] == []
    for file in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert _metadata(tmp_path / "out" / file) == _metadata(reference / file)


@pytest.mark.parametrize("base", BASES)
def test_every_reference_that_this_version_can_make_is_a_case(shared: Path, base: str) -> None:
    made_by = {
        path.parent.name: json.loads(path.read_text()) for path in folder(shared, base).glob("*/made_by.json")
    }
    algorithms = {name: made["quant_cfg"]["algorithm"] for name, made in made_by.items()}

    assert {name for name, algorithm in algorithms.items() if algorithm in ("max", None)} == {
        preset for case, preset in CASES if case == base
    }


def _same(name: str, found: Tensor, expected: Tensor) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if name.endswith(ACTIVATION_SCALES):
        return torch.allclose(found, expected, rtol=2**-7, atol=0)
    return torch.equal(found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


def _metadata(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    for part in (data, data.get("quantization_config", {})):
        part.pop("producer", None)
        part.pop("transformers_version", None)
    return data
