"""Smoothed models: our checkpoints are ModelOpt's byte for byte, and compute what its simulation did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import octavo
from helpers.reference import (
    base_model,
    calibration_ids,
    folder,
    logits,
    median_token_distance,
    metadata_of,
    same_tensor,
)
from helpers.smoothed_reference import SMOOTHED, smoothed_model
from octavo.core.evaluation.read_back import load_quantized

Case = tuple[str, str, nn.Module]


@pytest.fixture(scope="module", params=SMOOTHED, ids="-".join)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    base, preset = request.param
    return base, preset, smoothed_model(shared, base, preset)


def test_export_equals_the_reference(shared: Path, tmp_path: Path, case: Case) -> None:
    base, preset, model = case
    reference, out = folder(shared, base) / preset, tmp_path / "out"
    octavo.export_hf_checkpoint(model, export_dir=out, quiet=True)

    found, expected = load_file(out / "model.safetensors"), load_file(reference / "model.safetensors")

    assert found.keys() == expected.keys()
    assert [name for name in expected if not same_tensor(name, found[name], expected[name])] == []
    for file in ("config.json", "hf_quant_config.json"):
        assert metadata_of(out / file) == metadata_of(reference / file)


def test_logits_are_near_the_simulation_of_the_reference(shared: Path, case: Case) -> None:
    base, preset, model = case
    saved, ids = (
        load_file(folder(shared, base) / preset / "logits.safetensors"),
        calibration_ids(shared, base),
    )
    eager, sdpa = (logits(base_model(shared, base, kind), ids) for kind in ("eager", "sdpa"))

    found = logits(model, ids)

    # Of AWQ's factors the files show in full only what is left after those of q, k and v are averaged.
    margin = 3 if preset == "INT8_SMOOTHQUANT_CFG" else 10
    assert median_token_distance(found, saved["fake_quant"]) <= margin * median_token_distance(eager, sdpa)
    assert median_token_distance(found, saved["fp"]) > 0, "the model is quantized"


def test_the_reference_is_read_as_the_finalized_simulation(shared: Path, case: Case) -> None:
    base, preset, model = case
    ids = calibration_ids(shared, base)

    read = load_quantized(folder(shared, base) / preset)

    with octavo.finalized(model, "unified_hf"):
        found, expected = logits(read, ids), logits(model, ids)
    if base == "moe":  # the scales of its experts' inputs follow the machine's matrix kernels
        assert median_token_distance(found, expected) < 0.05
    else:
        assert torch.equal(found, expected)
