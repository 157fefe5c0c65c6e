"""A record that is damaged, of another version or not there is refused by file and reason."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.modes_saved import edit_record, plain, quantized
from octavo.core.errors import CheckpointError, ModeError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes") / "saved"
    octavo.save(quantized(), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "saved"))


def refused(folder: Path, message: str, error: type[Exception] = CheckpointError) -> None:
    """Restoring fails with `message`, and the plain model is as it was."""
    model = plain()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        octavo.restore(model, folder)
    assert snapshot(model) == before


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_refused_by_its_path(folder: Path, content: bytes) -> None:
    path = folder / "octavo_modes.json"
    path.write_bytes(content)

    refused(
        folder, rf"^{re.escape(str(path))} cannot be read as JSON: .*; give a folder that octavo.save wrote$"
    )


def test_a_folder_without_a_record_is_refused(folder: Path) -> None:
    (folder / "octavo_modes.json").unlink()

    refused(
        folder,
        r"octavo_modes.json cannot be read as JSON: .*No such file.*; give a folder that octavo.save wrote$",
    )


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"nowhere/octavo_modes.json cannot be read as JSON: .*No such file")


def test_a_newer_version_of_the_file_is_refused_with_both_versions(folder: Path) -> None:
    edit_record(folder, lambda record: record.update(version=2))

    message = rf"^{re.escape(str(folder))}/octavo_modes.json has version 2; this Octavo reads version 1. Upgrade it$"
    refused(folder, message, ModeError)


def test_a_newer_version_of_a_mode_is_refused_with_both_versions(folder: Path) -> None:
    edit_record(folder, lambda record: record["modes"][0].update(version=7))

    refused(folder, "^mode 'quantize' has version 7; this Octavo reads up to 1$", ModeError)


def test_an_unknown_mode_is_refused_with_the_known_ones(folder: Path) -> None:
    edit_record(folder, lambda record: record["modes"][0].update(mode="quantise"))

    refused(
        folder,
        r"^unknown mode 'quantise'; known: quantize, fold_weight, distill, compress. Did you mean 'quantize'\?$",
        ModeError,
    )


@pytest.mark.parametrize("record", [{"modes": []}, [1, 2], {"version": None, "modes": []}], ids=str)
def test_json_that_is_no_record_is_not_said_to_be_newer(folder: Path, record: Any) -> None:
    (folder / "octavo_modes.json").write_text(json.dumps(record))

    refused(folder, r"octavo_modes.json .*octavo.save wrote$", octavo.OctavoError)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([1], r"has \[1\] as 'report', expected type dict"),
        ({"weights": []}, "^the report in the record of mode 'quantize' has no 'tokens_per_expert'"),
        (
            {"tokens_per_expert": {}, "warnings": [], "cost": {}, "weights": [{"weight": "a"}]},
            "^a row of the report in the record of mode 'quantize' has no 'algorithm', found 'weight'$",
        ),
    ],
)
def test_a_damaged_report_is_refused(folder: Path, report: Any, message: str) -> None:
    edit_record(folder, lambda record: record["modes"][0]["state"].update(report=report))

    refused(folder, message)
