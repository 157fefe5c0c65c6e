"""The folder that appears: its permissions, behind links, and where somebody stands."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.model_folders import contents, some_tensors, write
from octavo.core.errors import ExportError
from octavo.core.model.atomic_folder import atomic_folder

NEW = {"config.json": b"{}", "code/model.py": b"x = 1\n"}


def fill(folder: Path) -> None:
    for name, data in NEW.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    try:
        yield
        assert os.umask(mask) == mask, "nobody changed it"
    finally:
        os.umask(previous)


def modes(folder: Path, kind: Callable[[Path], bool]) -> set[int]:
    everything = [folder, *folder.rglob("*")]
    return {stat.S_IMODE(path.stat().st_mode) for path in everything if kind(path)}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027], ids=oct)
def test_permissions_of_folders_and_files_are_what_the_umask_says(tmp_path: Path, mask: int) -> None:
    with umask(mask), atomic_folder(tmp_path / "out", overwrite=False) as folder:
        fill(folder)

    assert modes(tmp_path / "out", Path.is_dir) == {0o777 & ~mask}
    assert modes(tmp_path / "out", Path.is_file) == {0o666 & ~mask}


def test_permissions_of_shards_are_what_the_umask_says(tmp_path: Path) -> None:
    """A server that runs as another user must be able to read the checkpoint."""
    with umask(0o022), atomic_folder(tmp_path / "out", overwrite=False) as folder:
        write(folder, some_tensors(), max_shard_bytes=300)

    assert modes(tmp_path / "out", Path.is_file) == {0o644}


def test_a_link_to_a_folder_on_another_disk_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "out").symlink_to(tmp_path / "disk" / "out")

    with atomic_folder(tmp_path / "home" / "out", overwrite=False) as folder:
        fill(folder)

    assert os.listdir(tmp_path / "home") == ["out"]
    assert contents(tmp_path / "disk" / "out") == NEW


@pytest.mark.parametrize("place", [".", "..", "../out", "/proc"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_cannot_be_replaced_as_a_whole_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, overwrite: bool
) -> None:
    """Who stands in a folder that is replaced would see an empty, dead one; a mount point cannot be renamed."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    message = "is the current folder, one above it or a mount point.*give a folder inside it$"

    with pytest.raises(ExportError, match=message), atomic_folder(Path(place), overwrite):
        raise AssertionError("work was begun")

    assert os.listdir(tmp_path / "out") == []
