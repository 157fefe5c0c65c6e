"""Journal: what a run has finished, one checksummed line for each step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.streaming import files

NAME = "journal.jsonl"
VERSION = 1


class Journal:
    """An append-only file of JSON lines, `{"entry": …, "sha256": …}`; an entry lasts when `add` returns.

    Args:
        folder: Where it is, or will be.

    Attributes:
        entries: All of them, in order.

    Raises:
        CheckpointError: a line before the last is damaged; it is named. A torn last one is dropped.
        ExportError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.entries: list[dict[str, Any]] = []
        if self._path.exists():
            self._read()
        self._file = files.OutputFile(self._path, append=True)
        files.sync(folder)

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Write an entry of this kind, and return it."""
        entry = {"kind": kind, **fields}
        self._file.write(_line(entry))
        self._file.sync()
        self.entries.append(entry)
        return entry

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of one kind, in order."""
        return [entry for entry in self.entries if entry["kind"] == kind]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        good = 0
        for number, line in enumerate(lines):
            entry = _entry(line)
            if entry is None and number + 1 < len(lines):
                raise CheckpointError(
                    f"{self._path}: line {number + 1} of {len(lines)} is damaged; the disk cannot be trusted with this "
                    "run. Remove the folder and start again"
                )
            if entry is not None:
                self.entries.append(entry)
                good += len(line)
        if good < self._path.stat().st_size:
            files.cut(self._path, good)


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, sort_keys=True)
    return (json.dumps({"entry": entry, "sha256": _digest(text)}, sort_keys=True) + "\n").encode()


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line; None if the line is damaged, or has no end."""
    try:
        data = json.loads(line)
        entry, digest = data["entry"], data["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = line.endswith(b"\n") and _digest(json.dumps(entry, sort_keys=True)) == digest
    return entry if is_whole else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
