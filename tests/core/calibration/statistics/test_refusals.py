"""Statistics that do not fit: of another model, lacking what is asked for, damaged, or of bad data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import Branches, calibrated_state, quantizer_config, rows, two_layers
from helpers.calibration_snapshot import snapshot
from octavo import Statistics
from octavo.core.calibration import algorithms
from octavo.core.calibration.algorithm import Algorithm
from octavo.core.calibration.calibration import Calibration
from octavo.core.calibration.statistics import Needs
from octavo.core.calibration.statistics.statistics import Collection

DATA = [rows(), rows(1)]
INT8: dict[str, Any] = {"num_bits": 8, "axis": None}


class Look(Algorithm):
    """Ask for second moments and tokens."""

    method = "look"
    gram: bool = True
    num_tokens: int = 0

    def needs(self) -> Needs:
        return Needs(gram=self.gram, held_tokens=self.num_tokens)

    def run(self, calibration: Calibration) -> None:
        for problem in calibration.problems():
            assert problem.statistics is not None
            calibration.report(
                problem, "look", note=problem.statistics.rank_note(), warning=calibration.few_tokens()
            )


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms.ALGORITHMS, "look", f"{__name__}:Look")


@pytest.fixture(scope="module")
def found() -> Statistics:
    return octavo.collect_statistics(two_layers(), DATA, gram=False, held_tokens=4, quiet=True)


def with_algorithm(**options: Any) -> dict[str, Any]:
    return {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "look", **options}}


def with_other_values() -> nn.Module:
    model = two_layers()
    with torch.no_grad():
        model[1].weight[3, 5] += 1
    return model


OTHERS = {
    "values of its weights": with_other_values,
    "names, shapes or dtypes of its weights and values of its weights": lambda: two_layers().bfloat16(),
    "its class or config and names, shapes": lambda: nn.Sequential(*two_layers(), nn.Linear(16, 4)),
    "its class or config differ": lambda: nn.Sequential(
        two_layers()[0], type("Other", (nn.Linear,), {})(32, 16)
    ),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_another_model_is_refused_with_both_fingerprints(difference: str, found: Statistics) -> None:
    model = OTHERS[difference]()
    if difference == "its class or config differ":
        model.load_state_dict(two_layers().state_dict())
    before = snapshot(model)

    with pytest.raises(octavo.CalibrationError) as error:
        octavo.quantize(model, "INT8_DEFAULT_CFG", statistics=found, quiet=True)

    assert str(error.value).startswith(f"the statistics and this model are not of one model: {difference}")
    assert f"Fingerprint of the statistics: {found.model}; of this model: config " in str(error.value)
    assert snapshot(model) == before


MISSING = {
    "a Gram": (
        with_algorithm(),
        r"hold no XᵀX, which the algorithm needs; .* gram=True \(without --no-gram\)",
    ),
    "tokens": (
        with_algorithm(gram=False, num_tokens=9),
        r"hold 4 tokens .* algorithm needs 9; collect them with held_tokens=9 \(--held-tokens\)",
    ),
    "a histogram": (
        quantizer_config(input_quantizer={**INT8, "calibrator": "percentile"}),
        r"no histograms, .* of 2 quantizers need: 0\.input_quantizer \(percentile\), 1\.input_quantizer",
    ),
    "the quantized blocks": (
        {**octavo.INT8_DEFAULT_CFG, "algorithm": {"method": "max", "layerwise": {"enable": True}}},
        "layerwise calibration runs each block on what .* no statistics hold",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_they_do_not_hold_is_named(what: str, found: Statistics) -> None:
    config, message = MISSING[what]

    with pytest.raises(octavo.CalibrationError, match=message):
        octavo.quantize(two_layers(), config, statistics=found, quiet=True)


def test_a_layer_that_no_data_reached_is_named() -> None:
    found = octavo.collect_statistics(Branches().eval(), [rows()], quiet=True)
    model = Branches()
    model.load_state_dict(Branches().state_dict())

    with pytest.raises(octavo.CalibrationError, match="not of one model"):
        octavo.quantize(model, "FP8_DEFAULT_CFG", statistics=found, quiet=True)
    torch.manual_seed(0)
    model = Branches()
    found = octavo.collect_statistics(model, [rows()], quiet=True)
    with pytest.raises(octavo.CalibrationError, match=r"never reached 1 quantizers: rarely\.input_quantizer"):
        octavo.quantize(model, "FP8_DEFAULT_CFG", statistics=found, quiet=True)


def test_data_and_statistics_exclude_each_other(found: Statistics) -> None:
    with pytest.raises(
        octavo.ConfigError, match=r"both forward_loop .* and statistics \(--stats\) are given"
    ):
        octavo.quantize(two_layers(), "INT8_DEFAULT_CFG", DATA, statistics=found, quiet=True)


def test_statistics_of_two_parts_of_the_data_merge() -> None:
    whole = octavo.collect_statistics(two_layers(), DATA, quiet=True)
    one, other = (octavo.collect_statistics(two_layers(), [batch], quiet=True) for batch in DATA)

    merged = one.merge(other)

    assert merged.data == (*one.data, *other.data)
    quantized = [
        calibrated_state(octavo.quantize(two_layers(), "INT8_DEFAULT_CFG", statistics=s, quiet=True))
        for s in (whole, merged)
    ]
    assert quantized[0] == quantized[1]
    torch.testing.assert_close(
        merged.inputs["1.input_quantizer"].gram(), whole.inputs["1.input_quantizer"].gram()
    )


def test_what_does_not_merge(found: Statistics) -> None:
    with pytest.raises(
        octavo.CalibrationError, match="cannot be merged: gram=False and True, held_tokens=4 and 256"
    ):
        found.merge(octavo.collect_statistics(two_layers(), DATA, quiet=True))
    other = octavo.collect_statistics(with_other_values(), DATA, gram=False, held_tokens=4, quiet=True)
    with pytest.raises(octavo.CalibrationError, match=r"not of one model: values of .* differ\. Fingerprint"):
        found.merge(other)


def change_version(folder: Path) -> None:
    path = folder / "octavo_statistics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))


def lose_a_part(folder: Path) -> None:
    path = folder / "octavo_statistics.json"
    data = json.loads(path.read_text())
    del data["collection"]
    path.write_text(json.dumps(data))


def rename_an_option(folder: Path) -> None:
    path = folder / "octavo_statistics.json"
    path.write_text(path.read_text().replace('"held_tokens"', '"held"'))


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)


DAMAGES = {
    change_version: r"octavo_statistics.json has version 9; this Octavo reads version 1",
    lose_a_part: "has no 'collection'",
    rename_an_option: "octavo_statistics.json is damaged .*'held'.*; collect the statistics again",
    flip_a_byte: "is damaged: its SHA-256 is",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: Any, found: Statistics, tmp_path: Path) -> None:
    found.save(tmp_path / "stats")
    damage(tmp_path / "stats")
    everything = with_algorithm(gram=False, num_tokens=4)

    with pytest.raises(octavo.CheckpointError, match=DAMAGES[damage]):
        octavo.quantize(two_layers(), everything, statistics=tmp_path / "stats", quiet=True)


def test_a_folder_without_statistics(tmp_path: Path) -> None:
    with pytest.raises(
        octavo.CheckpointError, match=r"give a folder that octavo calibrate or Statistics\.save wrote"
    ):
        Statistics.load(tmp_path)


def test_options_survive_saving(found: Statistics, tmp_path: Path) -> None:
    found.save(tmp_path / "stats")

    loaded = Statistics.load(tmp_path / "stats")

    assert loaded.collection == found.collection == Collection(gram=False, held_tokens=4)
    assert (loaded.model, loaded.data, loaded.points) == (found.model, found.data, found.points)


@pytest.mark.parametrize("size", ["much", 0, "-1", "2 parsecs", True])
def test_a_budget_that_is_no_size(size: Any) -> None:
    with pytest.raises(
        octavo.ConfigError, match=rf"stats_budget \(--stats-budget\) {size!r}: expected a number"
    ):
        octavo.quantize(two_layers(), "INT8_DEFAULT_CFG", DATA, stats_budget=size, quiet=True)


def test_a_budget_that_one_input_exceeds() -> None:
    message = r"the statistics of 0\.input_quantizer take 4,992 bytes \(4,096 of them XᵀX\), and the budget .* is 4,000"
    model = two_layers()
    with pytest.raises(octavo.PlanError, match=message):
        octavo.quantize(model, with_algorithm(), DATA, stats_budget="4kB", quiet=True)
    with pytest.raises(octavo.CalibrationError, match=message):
        octavo.collect_statistics(model, DATA, held_tokens=0, stats_budget="4kB", quiet=True)


def poisoned(batch: Tensor) -> Tensor:
    batch = batch.clone()
    batch[2, 7] = math.nan
    return batch


@pytest.mark.parametrize("source", ["data", "statistics"])
def test_bad_batches_are_left_out_by_option_and_reported(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = with_algorithm(), [rows(), poisoned(rows(1)), rows(2)]
    expected = octavo.quantize(two_layers(), config, [data[0], data[2]], quiet=True)
    model = two_layers()

    if source == "data":
        octavo.quantize(model, config, data, skip_bad_batches=True)
        skipped = octavo.history(model)[-1].state["skipped_batches"]
    else:
        statistics = octavo.collect_statistics(two_layers(), data, skip_bad_batches=True)
        octavo.quantize(model, config, statistics=statistics, quiet=True)
        skipped = octavo.history(model)[-1].state["statistics"]["skipped_batches"]

    assert calibrated_state(model) == calibrated_state(expected)
    assert skipped == {"0.input_quantizer": [1], "1.input_quantizer": [1]}
    assert (
        "octavo: warning: 1 batches with NaN or infinite values were left out of 2 inputs (counted from 0): "
        "0.input_quantizer batch 1, 1.input_quantizer batch 1\n"
    ) in capsys.readouterr().err


def test_bad_batches_are_refused_without_the_option() -> None:
    with pytest.raises(
        octavo.CalibrationError, match=r"^0\.input_quantizer saw NaN or infinite values in batch 1 "
    ):
        octavo.collect_statistics(two_layers(), [rows(), poisoned(rows(1))], quiet=True)


def test_nothing_but_bad_batches() -> None:
    with pytest.raises(
        octavo.CalibrationError, match=r"every batch that reached 2 quantizers .* 0\.input_quantizer"
    ):
        octavo.quantize(
            two_layers(), "INT8_DEFAULT_CFG", [poisoned(rows())], skip_bad_batches=True, quiet=True
        )


def test_too_few_tokens_are_noted() -> None:
    model = octavo.quantize(two_layers(), with_algorithm(), DATA, quiet=True)

    notes = [row["note"] for row in octavo.history(model)[-1].state["report"]["weights"]]
    assert (
        notes
        == [
            "8 tokens for 32 channels: XᵀX has rank 8 at most, and damping decides the rest; give more calibration data"
        ]
        * 2
    )
    assert (
        octavo.history(model)[-1]
        .state["report"]["weights"][0]["warning"]
        .startswith("the inputs of 2 of 2 layers saw fewer tokens than they have channels")
    )
    model = octavo.quantize(two_layers(), with_algorithm(), [rows(count=40)], quiet=True)
    rest = [(row["note"], row["warning"]) for row in octavo.history(model)[-1].state["report"]["weights"]]
    assert rest == [("", ""), ("", "")]
