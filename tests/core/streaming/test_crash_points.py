"""A run that is stopped at any of its changes to the disk goes on to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.streaming import Crash, CrashingDisk, crashed, hashes, small_source, stream
from octavo.core.streaming import files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_source(tmp_path_factory.mktemp("crashes") / "source")


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("crashes") / "out"
    stream(source, out)
    return hashes(out)


def test_crash_points_of_a_whole_run(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = CrashingDisk()
    assert not crashed(monkeypatch, watching, source, tmp_path / "watched")
    shards = [name for name in expected if name.endswith(".safetensors")]
    assert len(shards) > 2, "several shards, so that one is written before the last block"
    for point, call in enumerate(watching.calls):
        # Half of what was being written is there; before a sync, nothing of what was not synced.
        disk = CrashingDisk(point, loses_power=call == "sync")
        out = tmp_path / str(point)
        assert crashed(monkeypatch, disk, source, out), call
        stream(source, out, resume=True)
        assert hashes(out) == expected, f"stopped at {point}: {call}"
        assert not out.with_name(f"{point}.partial").exists(), call
    print(f"{len(watching.calls)} crash points, {len(watching.calls)} resumed to the same bytes")


def test_crash_points_while_resuming(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, number = tmp_path / "out", 0
    while crashed(monkeypatch, CrashingDisk(6 + 3 * number), source, out, resume=True):
        number += 1
        assert number < 40
    assert hashes(out) == expected
    assert number > 3


def test_crash_points_around_the_last_rename_keep_what_was_there(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, out = CrashingDisk(), tmp_path / "watched"
    stream(source, out, "INT8_DEFAULT_CFG")
    crashed(monkeypatch, watching, source, out, overwrite=True)
    renames = [
        i for i, call in enumerate(watching.calls) if call.startswith(("rename watched", "rename checkpoint"))
    ]
    assert len(renames) == 2
    for point in range(renames[0], len(watching.calls)):
        stream(source, out, "INT8_DEFAULT_CFG", overwrite=True)
        before = hashes(out)
        assert crashed(
            monkeypatch, CrashingDisk(point, watching.calls[point] == "sync"), source, out, overwrite=True
        )
        kept = [folder for folder in (out, out.with_name("watched.partial") / "replaced") if folder.exists()]
        assert any(hashes(folder) in (before, expected) for folder in kept)
        stream(source, out, overwrite=True, resume=True)
        assert hashes(out) == expected


def test_the_disk_that_fails_writes_nothing_after_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "disk", CrashingDisk(0))
    file = files.OutputFile(tmp_path / "file")
    file.write(b"12345678")
    for _ in range(2):
        with pytest.raises(Crash):
            file.sync()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"1234"
