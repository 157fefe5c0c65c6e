"""Whatever fails while a folder is written: nothing under its name, the old one whole, nothing left beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.model_folders import contents, some_tensors, write
from octavo.core.errors import CheckpointError, ExportError
from octavo.core.model.atomic_folder import atomic_folder

OLD = {"out/octavo_old.json": b"old"}


@pytest.fixture(params=["old", "empty", "new"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    if request.param != "new":
        folder.mkdir()
    if request.param == "old":
        (folder / "octavo_old.json").write_text("old")
    return folder


def state(place: Path) -> tuple[list[str], dict[str, bytes]]:
    return sorted(os.listdir(place.parent)), contents(place.parent)


class Unknown(BaseException):
    """No `Exception`."""


def write_and_raise(place: Path, error: BaseException | None) -> None:
    with atomic_folder(place, overwrite=True) as folder:
        write(folder, some_tensors(3), max_shard_bytes=300)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyboardInterrupt(), SystemExit(3), Unknown(), CheckpointError("bad")],
    ids=repr,
)
def test_an_exception_leaves_what_was_there_and_comes_out_as_it_is(place: Path, error: BaseException) -> None:
    before = state(place)

    with pytest.raises(type(error)) as caught:
        write_and_raise(place, error)

    assert caught.value is error
    assert state(place) == before


def test_an_operating_system_error_says_what_became_of_the_folder(place: Path) -> None:
    before = state(place)
    message = (
        rf"^writing {place} failed: \[Errno 28\] No space left on device. Nothing was put there; what was there "
        "before is whole$"
    )

    with pytest.raises(ExportError, match=message):
        write_and_raise(place, OSError(28, "No space left on device"))

    assert state(place) == before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_failing_fsync_leaves_what_was_there(
    place: Path, call: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected: a disk that fails to flush cannot be had here."""
    before, calls, real = state(place), 0, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_and_raise(place, None)

    assert calls == call
    assert state(place) == before


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), KeyboardInterrupt()], ids=repr)
def test_a_failing_rename_puts_the_old_folder_back(
    place: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = state(place), Path.rename

    def rename(self: Path, target: Any) -> Path:
        if Path(target) == place and not self.name.endswith(".old"):
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_folder(place, overwrite=True) as folder:
        (folder / "new").write_text("new")

    assert state(place) == before


def test_a_failure_after_the_rename_does_not_claim_that_nothing_was_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "octavo_old.json").write_text("old")
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path):
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    said = ""
    try:
        with atomic_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "new.txt").write_text("new")
    except ExportError as error:
        said = str(error)

    is_old = contents(tmp_path) == OLD
    assert ("what was there before is whole" in said) == is_old
