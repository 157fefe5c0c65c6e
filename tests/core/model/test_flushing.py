"""What is renamed is on the disk by then: files and folders are flushed before, the parent after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from octavo.core.model.atomic_folder import atomic_folder


def test_every_file_and_folder_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(self: Path, target: Any) -> Path:
        events.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    with atomic_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "a").write_text("a")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")

    assert events.count("rename") == 1
    flushed, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {"a", "b", folder.name} <= set(flushed)
    assert after == [tmp_path.name]


def test_folders_inside_are_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")

    assert "sub" in flushed
