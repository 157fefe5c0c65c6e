"""report.json: what it says of a checkpoint, and that it says the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.model_folders import contents
from helpers.tiny import tiny_llama, token_batches
from octavo.core.report.files import read_report

ROW_KEYS = {
    "weight", "depth", "format", "inputs", "algorithms", "weight_sqnr_db", "output_sqnr_db", "fallback", "steps",
}  # fmt: skip
KEYS = {
    "version", "model", "config", "exporter", "totals", "weights", "tokens_per_expert", "left_out", "warnings",
    "differences", "cost",
}  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj"


def exported(folder: Path, algorithm: Any = "max", preset: str = "INT8_DEFAULT_CFG") -> dict[str, Any]:
    config = {**octavo.preset(preset), "algorithm": algorithm}
    model = octavo.quantize(tiny_llama(), config, token_batches(), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=folder, quiet=True)
    return read_report(folder)


def decibels(exact: Tensor, found: Tensor) -> float:
    exact, found = exact.detach().double(), found.detach().double()
    return float(10 * torch.log10(exact.square().sum() / (found - exact).square().sum()))


def test_every_weight_has_its_error(tmp_path: Path) -> None:
    report = exported(tmp_path / "out")

    assert report.keys() == KEYS
    assert {frozenset(row) for row in report["weights"]} == {frozenset(ROW_KEYS)}
    row = next(row for row in report["weights"] if row["weight"] == f"{DOWN}.weight")
    read = octavo.load_quantized(tmp_path / "out").get_submodule(DOWN).weight
    assert row["weight_sqnr_db"] == pytest.approx(decibels(tiny_llama().get_submodule(DOWN).weight, read))
    assert (row["depth"], row["algorithms"], row["steps"], row["fallback"]) == (1, ["max"], [], None)
    assert row["format"] == "int8 channel0"
    assert row["inputs"].startswith("int8")
    assert report["totals"].items() >= {"weights": 14, "fallbacks": 0}.items()
    assert report["left_out"] == ["model.embed_tokens", "lm_head"]
    assert report["cost"].keys() >= {"seconds", "cpu_seconds", "peak_bytes", "seconds_of"}


def test_an_algorithm_says_what_was_lost_and_chosen(tmp_path: Path, nearest: dict[str, Any]) -> None:
    report = exported(tmp_path / "out", ["nearest", "nearest"])

    plain = exported(tmp_path / "plain")
    for row, other in zip(report["weights"], plain["weights"], strict=True):
        first, second = row["steps"]
        assert row["algorithms"] == ["nearest", "nearest"]
        assert first["alpha"] == 0.5
        assert first["weight_sqnr_db"] == pytest.approx(other["weight_sqnr_db"])
        assert second["weight_sqnr_db"] is None, "nothing was lost the second time"
        assert row["weight_sqnr_db"] == first["weight_sqnr_db"]
        assert row["output_sqnr_db"] == first["output_sqnr_db"] > 20


def test_the_report_is_saved_and_restored(tmp_path: Path, nearest: dict[str, Any]) -> None:
    config = {**octavo.INT8_DEFAULT_CFG, "algorithm": "nearest"}
    model = octavo.quantize(tiny_llama(), config, token_batches(), quiet=True)
    octavo.save(model, tmp_path / "saved")
    restored = octavo.restore(tiny_llama(), tmp_path / "saved")

    for name, one in {"first": model, "again": model, "restored": restored}.items():
        octavo.export_hf_checkpoint(one, export_dir=tmp_path / name, quiet=True)

    assert contents(tmp_path / "first") == contents(tmp_path / "again") == contents(tmp_path / "restored")


def test_two_runs_differ_in_their_cost_alone(tmp_path: Path) -> None:
    one, other = exported(tmp_path / "one"), exported(tmp_path / "other")

    assert {**one, "cost": None} == {**other, "cost": None}


def test_a_calibration_afterwards_is_added(tmp_path: Path, nearest: dict[str, Any]) -> None:
    model = octavo.quantize(tiny_llama(), octavo.INT8_DEFAULT_CFG, token_batches(), quiet=True)
    octavo.calibrate(model, "nearest", token_batches(), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    assert {tuple(row["algorithms"]) for row in read_report(tmp_path / "out")["weights"]} == {("nearest",)}


def test_folders_without_a_report_are_refused(tmp_path: Path) -> None:
    with pytest.raises(octavo.CheckpointError, match=rf"^{tmp_path} has no report\.json"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(octavo.CheckpointError, match=r"report\.json is damaged: Expecting property name"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(octavo.CheckpointError, match=r"has version 9, and this Octavo reads version 1"):
        read_report(tmp_path)
