"""Every change that a streaming run makes on the disk goes through here, so that each can be made to fail in a test."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from octavo.core.errors import ExportError

_CHUNK = 4 << 20


class Disk:
    """The operating system's calls that change files."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`; return how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Return when the disk has what was written."""
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; a file of that name is replaced."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make a folder, where there is none, and those above it."""
        path.mkdir(parents=True, exist_ok=True)

    def cut(self, path: Path, length: int) -> None:
        """Drop what a file holds beyond `length` bytes."""
        os.truncate(path, length)


disk = Disk()


class OutputFile:
    """A file that is written from its beginning, or from a position on.

    Args:
        path: The file; made if there is none.
        append: Go on behind what it holds; otherwise that is dropped.

    Raises:
        ExportError: it cannot be written, here and on every use; it is named.
    """

    def __init__(self, path: Path, append: bool = False) -> None:
        self.path = path
        self._buffer = bytearray()
        try:
            mode = os.O_APPEND if append else os.O_TRUNC
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o666)
        except OSError as error:
            raise _failure(path, error) from error

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`, at the latest with the next `sync`."""
        if len(data) < _CHUNK:  # many scales are a few bytes
            self._buffer += data
        if len(data) >= _CHUNK or len(self._buffer) >= _CHUNK:
            self._write(self._buffer)
            self._buffer = bytearray()
        if len(data) >= _CHUNK:
            self._write(data)

    def sync(self) -> None:
        """Return when the disk has it."""
        self._write(self._buffer)
        self._buffer = bytearray()
        try:
            disk.sync(self._descriptor)
        except OSError as error:
            raise _failure(self.path, error) from error

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[disk.write(self._descriptor, rest[:_CHUNK]) :]
        except OSError as error:
            raise _failure(self.path, error) from error

    def close(self) -> None:
        """Close the file; what was not synced is lost."""
        os.close(self._descriptor)

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and lasts.

    Raises:
        ExportError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.part")
    with OutputFile(temporary) as file:
        file.write(data)
        file.sync()
    rename(temporary, path)


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write a JSON file as `write_whole` does."""
    write_whole(path, (json.dumps(data, indent=indent) + "\n").encode())


def rename(old: Path, new: Path) -> None:
    """Rename a file or a folder, for good: the folder's list of names is on the disk afterwards.

    Raises:
        ExportError: it cannot be renamed.
    """
    try:
        disk.rename(old, new)
    except OSError as error:
        raise _failure(new, error) from error
    sync(new.parent)


def sync(path: Path) -> None:
    """Return when the disk has all of a file, or a folder's list of names.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failure(path, error) from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one.

    Raises:
        ExportError: it cannot be removed.
    """
    try:
        disk.remove(path)
    except OSError as error:
        raise _failure(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where there are none.

    Raises:
        ExportError: it cannot be made.
    """
    try:
        disk.make_folder(path)
    except OSError as error:
        raise _failure(path, error) from error


def cut(path: Path, length: int) -> None:
    """Drop what a file holds beyond `length` bytes.

    Raises:
        ExportError: it cannot be changed.
    """
    try:
        disk.cut(path, length)
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> ExportError:
    return ExportError(
        f"{path} cannot be written: {error.strerror or error}. What is done so far is kept in {_run_folder(path)}; "
        "make room there, or mend what is named, and go on with resume=True (--resume)"
    )


def _run_folder(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.name.endswith(".partial")), path.parent)
