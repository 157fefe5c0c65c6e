"""Writing a folder so that it appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from uuid import uuid4

from octavo.core.errors import ExportError, listed
from octavo.core.model.background import flush_to_disk

_OWN_FILES = "octavo_*.json"  # the manifest of a checkpoint, the record of a saved model


@contextmanager
def atomic_folder(directory: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `directory` that becomes it when the context ends without an exception.

    Every file and folder is fsynced before the rename. On any exception, interrupts and a full disk included,
    the temporary folder is removed and whatever was at `directory` stays whole.

    Args:
        directory: The final place; parents are created. A link to a folder stays one: its target is replaced.
        overwrite: Replace a folder that Octavo wrote.

    Raises:
        ExportError: `directory` is a file, is not empty and `overwrite` is off, holds something that Octavo did
            not write, or is a folder that cannot be replaced as a whole (the current one, a mount point); or
            writing failed.
    """
    directory = directory.resolve()
    check_place(directory, overwrite)
    temporary = directory.with_name(f".{directory.name}.partial-{uuid4().hex[:12]}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise ExportError(f"cannot create a folder in {directory.parent}: {error}") from error
    try:
        yield temporary
        for path in (*sorted(temporary.rglob("*")), temporary):
            flush_to_disk(path)
        _put_in_place(temporary, directory)
    except OSError as error:
        raise ExportError(
            f"writing {directory} failed: {error}. Nothing was put there; what was there before is whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(directory: Path, overwrite: bool) -> None:
    """Refuse a place where `atomic_folder` would not put a folder.

    Raises:
        ExportError: as `atomic_folder` says.
    """
    current = Path.cwd()
    if directory in (current, *current.parents) or directory.is_mount():
        raise ExportError(
            f"{directory} is the current folder, one above it or a mount point, which cannot be replaced as a whole; "
            "give a folder inside it"
        )
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file; give a folder")
    files = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if files and not overwrite:
        raise ExportError(f"{directory} is not empty; give another folder, or overwrite=True (--overwrite)")
    if files and not any(fnmatch(name, _OWN_FILES) for name in files):
        raise ExportError(
            f"{directory} has no {_OWN_FILES}, so Octavo did not write it and does not replace it; found "
            f"{listed(files, 3)}. Give another folder, or remove this one yourself"
        )


def _put_in_place(temporary: Path, directory: Path) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        if directory.exists():
            directory.rename(old)
        temporary.rename(directory)
        flush_to_disk(directory.parent)
    except BaseException:
        if not temporary.exists():
            directory.rename(temporary)
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
