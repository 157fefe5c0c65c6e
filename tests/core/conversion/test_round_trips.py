"""Where both dialects hold the numbers, converting changes no value, and converting back no byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.conversions import HELD_BY_BOTH, Unified, description, different, exported, values_of
from helpers.exporters_models import json_of
from helpers.reference import folder, metadata_of


@pytest.mark.parametrize("case", HELD_BY_BOTH)
def test_there_and_back_is_byte_for_byte_what_it_was(case: str, unified: Unified, tmp_path: Path) -> None:
    source = unified(case)

    there = octavo.convert_checkpoint(source, tmp_path / "ct", dialect="compressed_tensors", quiet=True)
    back = octavo.convert_checkpoint(tmp_path / "ct", tmp_path / "back", dialect="unified_hf", quiet=True)

    assert (there.source_dialect, there.dialect, there.changes) == ("unified_hf", "compressed_tensors", ())
    assert (back.source_dialect, back.dialect, back.changes) == ("compressed_tensors", "unified_hf", ())
    values, converted = values_of(source), values_of(tmp_path / "ct")
    assert values.keys() == converted.keys()
    assert [name for name in values if not torch.equal(values[name], converted[name])] == []
    assert different(source, tmp_path / "back") == []
    for file in ("config.json", "hf_quant_config.json"):
        assert json_of(tmp_path / "back" / file) == json_of(source / file)


@pytest.mark.parametrize("case", [case for case in HELD_BY_BOTH if case != "MXFP4"])
def test_converted_is_byte_for_byte_what_is_exported(case: str, unified: Unified, tmp_path: Path) -> None:
    """But for MXFP4, whose ties ModelOpt's dialect rounds to zero: its codes stay those."""
    target = "transformers" if case == "FP8 channel" else "vllm"
    exported(HELD_BY_BOTH[case], tmp_path / "exported", target=target)
    octavo.convert_checkpoint(unified(case), tmp_path / "ct", dialect="compressed_tensors", quiet=True)

    assert different(tmp_path / "exported", tmp_path / "ct") == []
    assert description(tmp_path / "exported") == description(tmp_path / "ct")


@pytest.mark.parametrize("base", ["dense", "tied", "moe"])
@pytest.mark.parametrize(
    "preset",
    [
        "NVFP4_DEFAULT_CFG+FP8_KV_CFG",
        "W4A16_NVFP4_CFG",
        "W4A8_NVFP4_FP8_CFG",
        "W4A8_MXFP4_FP8_CFG",
        "MXFP8_DEFAULT_CFG",
        "INT8_SMOOTHQUANT_CFG",
        "W4A8_AWQ_BETA_CFG",
    ],
)
def test_the_peers_files_in_its_own_dialect_stay_as_they_are(
    shared: Path, tmp_path: Path, base: str, preset: str
) -> None:
    """Written again from what was read: every format's codes, scales, factors and second formats."""
    source = folder(shared, base) / preset
    if not source.is_dir():
        assert (base, preset) == ("moe", "W4A8_AWQ_BETA_CFG")  # not among the references
        return

    report = octavo.convert_checkpoint(
        source, tmp_path / "out", dialect="unified_hf", target="trtllm", quiet=True
    )

    assert report.changes == ()
    found, expected = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(_bytes(found[name]), _bytes(expected[name]))] == []
    for file in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert metadata_of(tmp_path / "out" / file) == metadata_of(source / file)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
