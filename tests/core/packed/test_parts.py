"""Packed tensors as parts: through safetensors and JSON on the disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.calibration_snapshot import same_bits
from helpers.packed_specs import SPECS, some_tensor, state_of
from octavo.core.packed import PackedTensor


def packed(name: str = "nvfp4", dtype: torch.dtype = torch.bfloat16) -> PackedTensor:
    x = some_tensor(dtype=dtype)
    return PackedTensor.pack(x, state_of(x, SPECS[name]), SPECS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_parts_survive_the_disk(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    before = packed(name, dtype)
    tensors, description = before.to_parts()
    save_file(tensors, tmp_path / "parts.safetensors")
    (tmp_path / "parts.json").write_text(json.dumps(description))

    after = PackedTensor.from_parts(
        load_file(tmp_path / "parts.safetensors"), json.loads((tmp_path / "parts.json").read_text())
    )

    assert (after.spec, after.shape, after.dtype) == (before.spec, before.shape, before.dtype)
    assert same_bits(after.payload, before.payload)
    assert same_bits(after.scale, before.scale)
    assert same_bits(after.dequantize(), before.dequantize())


def test_only_two_level_formats_have_a_global_scale() -> None:
    for name, spec in SPECS.items():
        tensors, _ = packed(name).to_parts()
        assert ("global_scale" in tensors) == (spec.global_max is not None), name
        assert {"payload", "scale"} <= tensors.keys()


def test_packed_tensors_can_be_compared() -> None:
    first = packed()

    assert first == first
    assert isinstance(first == packed(), bool)
