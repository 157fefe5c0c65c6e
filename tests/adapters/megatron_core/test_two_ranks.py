"""Megatron-core models that two ranks share: calibrated, saved, loaded, trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.launcher import run_on_two_ranks
from helpers.megatron_results import check_trips

FORMATS = ["fp8", "fp8_sp", "nvfp4", "int8", "int8_tied", "int4", "attention", "histogram"]
TRIPS = [
    "tp2_tp1",
    "tp1_tp2",
    "tp1_tp2_blocks",
    "pp2_tp2_factors",
    "pp2_tp2",
    "tp2_pp2_some",
    "ep2_tp1",
    "ep2_pp2",
]
NEAR = 2e-6  # relative, of losses in fp32


@pytest.mark.launcher
def test_calibration(tmp_path: Path) -> None:
    result = run_on_two_ranks("megatron", tmp_path, "statistics", "engine")

    check_statistics(result["statistics"])
    check_gradients(result["statistics"]["gradients"])
    check_refused_calibration(result["statistics"]["refused"])
    check_engine(result["engine"])


@pytest.mark.launcher
def test_checkpoints(tmp_path: Path) -> None:
    check_trips(run_on_two_ranks("megatron", tmp_path, "checkpoints")["checkpoints"], TRIPS, 2)


@pytest.mark.launcher
def test_refusals_and_a_script(tmp_path: Path) -> None:
    result = run_on_two_ranks("megatron", tmp_path, "refusals", "script")

    check_refusals(result["refusals"])
    check_plain_megatron(result["refusals"])
    check_script(result["script"])


def check_statistics(result: dict[str, Any]) -> None:
    """Scales, codes and outputs are those of one rank."""
    for name in FORMATS:
        found = result[name]
        assert found["tensors"] >= 12, name
        assert found["weights"] == [[], []], f"{name}: scales of weights have other bytes than one rank's"
        assert found["inputs"] == [[], []], f"{name}: scales of inputs are not within 1e-6 of one rank's"
        plain, one, two = found["losses"]
        assert two == pytest.approx(one, rel=NEAR), name
        assert one != pytest.approx(plain, rel=NEAR), f"{name}: nothing was rounded"
    assert len(result["codes"]) == 9
    assert min(result["codes"].values()) >= 0.999
    assert result["data"]["differing"] == [[], []]  # ranks with other data share maxima


def check_gradients(found: dict[str, Any]) -> None:
    """Of a column-parallel weight, a row-parallel one and the embedding; without and with sequence parallelism."""
    assert found["nonzero"] == [True] * 3
    assert found["near"] == [[[True] * 3] * 2] * 2


def check_refused_calibration(refused: dict[str, Any]) -> None:
    assert (
        "linear_proj.weight_quantizer: last dim 32 is not divisible by the block of 64" in refused["blocks"]
    )
    assert "the algorithm 'smoothquant' is not available where ranks share" in refused["smoothquant"]
    assert refused["plain"] == ["ColumnParallelLinear", "RowParallelLinear"]
    for message in refused["nan"]:  # of both ranks, though one has the weight
        assert (
            "1 quantizers saw NaN or infinite values: decoder.layers.1.mlp.linear_fc2.weight_quantizer"
            in message
        )


def check_refusals(found: dict[str, Any]) -> None:
    expected = {
        "overwritten": "is not empty; give another folder, or overwrite=True",
        "modes": "the model has modes already: quantize; load into a plain one",
        "nothing": "nothing does not exist: it has no metadata.json that says how tensors are divided",
        "wrapped": "a Float16Module wraps the model; quantize the model inside it",
        "settings": "the model's config has fp8='e4m3', which is not available with quantized layers; turn it off",
        "packed": "octavo.compress is not available for Megatron-core models",
        "finalized": "the model is finalized for unified_hf; call octavo.unfinalize(model) before saving it",
        "experts": "has 4 quantized layers that no rank of this GPTModel has: decoder.layers.0.mlp.linear_fc1",
        "shapes": "'decoder.layers.0.mlp.linear_fc1.weight' has shape (256, 64), the model's has (512, 64)",
    }
    for name, message in expected.items():
        assert message in found[name], name
    for message in found["layers"]:
        assert (
            "has 4 quantized layers that no rank of this GPTModel has: decoder.layers.1.mlp.linear_fc1"
            in message
        )
    for message in found["blocks"]:
        assert (
            "decoder.layers.0.self_attention.linear_proj has 32 columns on a rank, in blocks of 64" in message
        )
    old, new = found["versions"]
    assert "megatron-core 0.13.1 is older than 0.14" in old
    assert "no error" in new
    assert "megatron-core 0.99.0 is newer than 0.16, the newest that was tested" in new
    assert found["left_quantized"] == []  # models whose loading was refused
    assert found["still_quantized"] == 1  # and one that keeps its own


def check_plain_megatron(found: dict[str, Any]) -> None:
    """What Megatron-core alone makes of checkpoints, and what is made of its own."""
    assert found["plain_megatron"]["weights"] is True
    left_out = found["plain_megatron"]["left_out"]
    assert len(left_out) == 33
    assert all("_quantizer." in key or key == "octavo_record.modes" for key in left_out)
    assert found["script"]["wrong"] == []
    saved, loaded = found["script"]["losses"]
    assert loaded == saved
    saved, loaded = found["from_plain"]
    assert loaded == pytest.approx(saved, rel=NEAR)


def check_script(found: dict[str, Any]) -> None:
    """A script that is started again goes on as if it had not been stopped; its loss falls."""
    assert found["scales"] == [[8, True], [8, True]]
    assert found["losses"][1] < found["losses"][0]
    assert found["resumed"] == found["uninterrupted"]
    assert found["uninterrupted"][1] < found["uninterrupted"][0] < found["losses"][1]
    assert "none does not exist: it has no metadata.json" in found["plain"]
    assert "calibration needs at least 1 batch, found num_batches=0" in found["no_batches"]


def check_engine(found: dict[str, Any]) -> None:
    """Layers with Transformer Engine's settings compute what Megatron-core's own do."""
    for kind in ("tensor", "sequence"):
        own, engine = found[kind]["losses"]
        assert engine == pytest.approx(own, rel=NEAR), kind
        assert found[kind]["scales"] == [True] * 4
        assert found[kind]["gradients"] == [[True] * 4] * 2
        assert found[kind]["moved"] == [True] * 4
