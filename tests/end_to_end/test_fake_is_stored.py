"""What is stored is what was simulated: export, read, dequantize equals the finalized fake weight, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.errors import ExportError, UnsupportedError
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedChain, PackedTensor

NOTHING_TO_QUANTIZE = {"NVFP4_EXPERTS_ONLY_CFG"}  # a dense model has no experts
# What the checkpoint cannot hold, and what its report says of it.
PARTLY_STORED = {"NVFP4_FP8_MHA_CONFIG": "q_bmm_quantizer", "FP8_KV_CFG": "never calibrated"}
NO_PLACE = {"OCTAVO_INT3_CFG"}  # no checkpoint of this dialect holds three bits
# Alone these have none; they are joined to a model preset.
NEEDS_AN_ALGORITHM = {"NVFP4_KV_CFG", "FP8_AFFINE_KV_CFG", "NVFP4_AFFINE_KV_CFG"}
NOTHING_STORED = {"NVFP4_KV_ROTATE_CFG"}  # checkpoints hold no rotations, and alone it quantizes nothing else


def _is_available(name: str) -> bool:
    try:
        algorithms_of(octavo.preset(name)["algorithm"])
    except UnsupportedError:
        return False
    return True


MODEL_PRESETS = [name for name in octavo.preset_names() if _is_available(name)]
LEFT_OUT = NOTHING_TO_QUANTIZE | NEEDS_AN_ALGORITHM | NOTHING_STORED | NO_PLACE
CASES = [name for name in MODEL_PRESETS if name not in LEFT_OUT]
JOINED = [
    "NVFP4_DEFAULT_CFG+NVFP4_KV_CFG",
    "INT8_DEFAULT_CFG+FP8_KV_CFG",
    "FP8_DEFAULT_CFG+FP8_AFFINE_KV_CFG",
    "NVFP4_DEFAULT_CFG+NVFP4_AFFINE_KV_CFG",
    "MXFP8_DEFAULT_CFG+NVFP4_KV_ROTATE_CFG",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", [*CASES, *JOINED])
def test_stored_weights_equal_the_finalized_simulation(
    preset: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, batches = tiny_llama(dtype), token_batches()
    octavo.quantize(model, octavo.merge_configs(*preset.split("+")), batches, quiet=True)
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        expected = {
            f"{name}.weight": layer.quantizers()["weight_quantizer"](weight)
            for name, layer in quantized_layers(model)
            for weight in layer.quantized_weights().values()
        }
        expected_logits = model(batches[0]).logits

    packed = {
        name: value
        for name, value in exporter_of(tmp_path / "out").open(tmp_path / "out").tensors()
        if isinstance(value, (PackedTensor, PackedChain))
    }
    assert packed.keys() == expected.keys()
    assert [name for name in expected if not _same_bits(packed[name].dequantize(), expected[name])] == []
    if preset in PARTLY_STORED:
        assert any(PARTLY_STORED[preset] in warning for warning in report.warnings)
    if preset == "FP8_KV_CFG":  # its maxima follow the values, and engines take the scale 1
        return
    with torch.no_grad():
        read_back = octavo.load_quantized(tmp_path / "out")(batches[0]).logits
    assert _same_bits(read_back, expected_logits)


def test_every_available_preset_is_a_case_or_says_why_not() -> None:
    assert len(CASES) >= 22
    for name in NOTHING_TO_QUANTIZE | NEEDS_AN_ALGORITHM:
        with pytest.raises(octavo.OctavoError):
            octavo.quantize(tiny_llama(), octavo.preset(name), token_batches(), quiet=True)


@pytest.mark.parametrize("name", sorted(NO_PLACE | NOTHING_STORED))
def test_what_no_checkpoint_holds_is_refused_and_saved(name: str, tmp_path: Path) -> None:
    model, batches = tiny_llama(num_hidden_layers=1), token_batches(4)
    octavo.quantize(model, name, batches, quiet=True)

    with pytest.raises(ExportError, match=r"formats that this dialect cannot store|no quantizer is on that"):
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    octavo.save(model, tmp_path / "saved")
    restored = octavo.restore(tiny_llama(num_hidden_layers=1), tmp_path / "saved")
    with torch.no_grad():
        assert _same_bits(restored(batches[0]).logits, model(batches[0]).logits)


def _same_bits(found: Tensor, expected: Tensor) -> bool:
    assert found.dtype == expected.dtype
    return torch.equal(found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))
