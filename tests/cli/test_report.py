"""`octavo report`: the worst weights, and entries that spare their layers."""

from __future__ import annotations

from pathlib import Path

import torch

import octavo
from helpers.cli_runner import Run
from octavo.core.modules import quantized_layers
from octavo.core.report.files import read_report


def test_the_worst_weights_come_first(octavo_command: Run, checkpoint: Path) -> None:
    rows = sorted(read_report(checkpoint)["weights"], key=lambda row: row["weight_sqnr_db"])

    found = octavo_command("report", checkpoint, "--worst", 3, "--json").json
    printed = octavo_command("report", checkpoint, "--worst", 3)

    assert found["worst"] == rows[:3]
    assert len(found["entries"]) == 3
    assert printed.code == 0
    assert all(f"{row['weight_sqnr_db']:.1f}" in printed.out for row in rows[:3])
    assert [name for row in rows[:4] for name in [row["weight"]] if name in printed.out] == [
        row["weight"] for row in rows[:3]
    ]
    assert str(found["entries"][0]) in printed.out


def test_its_entries_spare_these_layers(octavo_command: Run, checkpoint: Path, stories: Path) -> None:
    from octavo.core.plugins import plugins

    entries = octavo_command("report", checkpoint, "--worst", 2, "--json").json["entries"]
    config = octavo.FP8_DEFAULT_CFG
    spared = {**config, "quant_cfg": [*config["quant_cfg"], *entries]}

    models = [plugins().load_model(stories, None, False) for _ in range(2)]
    for model, one in zip(models, (config, spared), strict=True):
        octavo.quantize(model, one, [torch.ones(1, 4, dtype=torch.int64)], quiet=True)

    before, after = ({name for name, _ in quantized_layers(model)} for model in models)
    assert sorted(f"{name}.*" for name in before - after) == sorted(
        entry["quantizer_name"] for entry in entries
    )
    assert len(before - after) == 2


def test_a_folder_without_a_report(octavo_command: Run, tmp_path: Path) -> None:
    refused = octavo_command("report", tmp_path)

    assert refused.code == 5
    assert f"{tmp_path} has no report.json: it is no checkpoint that Octavo wrote" in refused.err
