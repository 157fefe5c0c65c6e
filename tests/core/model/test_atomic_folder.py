"""A folder appears whole where it was asked for, or is refused before any work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from helpers.model_folders import contents
from octavo.core.errors import ExportError
from octavo.core.model.atomic_folder import atomic_folder

NEW = {"config.json": b"{}", "code/model.py": b"x = 1\n"}


def fill(folder: Path) -> None:
    for name, data in NEW.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "octavo_old.json").write_text("old")
    return folder


@pytest.mark.parametrize("place", ["out", "deep/er/out"])
def test_the_folder_appears_when_the_context_ends_and_not_before(tmp_path: Path, place: str) -> None:
    with atomic_folder(tmp_path / place, overwrite=False) as folder:
        fill(folder)
        assert folder.parent == (tmp_path / place).parent, "on the same disk, so that a rename is enough"
        assert not (tmp_path / place).exists()

    assert contents(tmp_path) == {f"{place}/{name}": data for name, data in NEW.items()}
    assert not folder.exists()


def test_an_empty_folder_is_a_good_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with atomic_folder(tmp_path / "out", overwrite=False) as folder:
        fill(folder)

    assert contents(tmp_path / "out") == NEW
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_relative_path_means_the_folder_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("a/../b/out") if nested else Path("out")
    (tmp_path / "a").mkdir()

    with atomic_folder(place, overwrite=False) as folder:
        monkeypatch.chdir(tmp_path / "a")
        fill(folder)

    assert contents(tmp_path / ("b/out" if nested else "out")) == NEW


def test_overwriting_replaces_the_whole_folder(old: Path) -> None:
    with atomic_folder(old, overwrite=True) as folder:
        fill(folder)
        assert contents(old) == {"octavo_old.json": b"old"}

    assert contents(old.parent) == {f"out/{name}": data for name, data in NEW.items()}


def test_a_folder_that_is_not_empty_is_refused_before_any_work(old: Path) -> None:
    message = rf"^{re.escape(str(old))} is not empty; give another folder, or overwrite=True \(--overwrite\)$"

    with pytest.raises(ExportError, match=message), atomic_folder(old, overwrite=False):
        raise AssertionError("work was begun")

    assert contents(old.parent) == {"out/octavo_old.json": b"old"}


def test_a_folder_that_octavo_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    """The model that is quantized, say, or a home."""
    source = {"out/config.json": b"{}", "out/model.safetensors": b"weights"}
    (tmp_path / "out").mkdir()
    for name, data in source.items():
        (tmp_path / name).write_bytes(data)
    message = (
        rf"^{re.escape(str(tmp_path / 'out'))} has no octavo_\*.json, so Octavo did not write it and does not replace "
        r"it; found config.json, model.safetensors. Give another folder, or remove this one yourself$"
    )

    with pytest.raises(ExportError, match=message), atomic_folder(tmp_path / "out", overwrite=True):
        raise AssertionError("work was begun")

    assert contents(tmp_path) == source


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_refused_before_any_work(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("a file")
    message = rf"^{re.escape(str(tmp_path / 'out'))} is a file; give a folder$"

    with pytest.raises(ExportError, match=message), atomic_folder(tmp_path / "out", overwrite):
        raise AssertionError("work was begun")

    assert contents(tmp_path) == {"out": b"a file"}


def test_a_parent_that_is_a_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    message = (
        rf"^cannot create a folder in {re.escape(str(tmp_path / 'file'))}: .*(File exists|Not a directory)"
    )

    with pytest.raises(ExportError, match=message), atomic_folder(tmp_path / "file" / "out", overwrite=False):
        raise AssertionError("work was begun")


def test_a_place_where_nothing_can_be_created_is_refused_with_the_reason() -> None:
    message = r"^cannot create a folder in /proc/octavo: \[Errno \d+\] .*'/proc/octavo'$"

    with pytest.raises(ExportError, match=message), atomic_folder(Path("/proc/octavo/out"), overwrite=False):
        raise AssertionError("work was begun")
