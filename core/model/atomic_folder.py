"""Writing a folder so that it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.core.errors import ExportError


@contextmanager
def atomic_folder(directory: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `directory` that becomes it when the context ends without an exception.

    Every file is fsynced before the rename. On any exception, interrupts and a full disk included, the
    temporary folder is removed and whatever was at `directory` stays whole.

    Args:
        directory: The final place; parents are created.
        overwrite: Replace a folder that is not empty.

    Raises:
        ExportError: `directory` is a file, or is not empty and `overwrite` is off, or writing failed.
    """
    directory = directory.absolute()
    _check_place(directory, overwrite)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    except OSError as error:
        raise ExportError(f"cannot create a folder in {directory.parent}: {error}") from error
    try:
        yield temporary
        _sync(temporary)
        _put_in_place(temporary, directory)
    except OSError as error:
        raise ExportError(
            f"writing {directory} failed: {error}. Nothing was put there; what was there before is whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_place(directory: Path, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file; give a folder")
    if directory.is_dir() and not overwrite and any(directory.iterdir()):
        raise ExportError(f"{directory} is not empty; give another folder, or overwrite=True (--overwrite)")


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, directory: Path) -> None:
    os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp makes folders private
    old = temporary.with_name(f"{temporary.name}.old")
    if directory.exists():
        directory.rename(old)
    try:
        temporary.rename(directory)
    except BaseException:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _fsync(directory.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
