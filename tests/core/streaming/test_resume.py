"""What `resume` goes on with, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.model_folders import contents
from helpers.streaming import CrashingDisk, crashed, hashes, small_data, small_source, stream
from octavo.core.errors import CheckpointError, ConfigError, ExportError
from octavo.core.streaming.journal import Journal
from octavo.core.streaming.lock import locked


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_source(tmp_path_factory.mktemp("resume") / "source")


@pytest.fixture
def interrupted(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run goes that was stopped after its first block; its folder is beside it."""
    out = tmp_path / "out"
    watching = CrashingDisk()
    assert not crashed(monkeypatch, watching, source, tmp_path / "watched")
    first = next(i for i, call in enumerate(watching.calls) if "part-00001" in call)
    assert crashed(monkeypatch, CrashingDisk(first), source, out)
    return out


def test_without_a_run_before_it_begins(source: Path, tmp_path: Path) -> None:
    stream(source, tmp_path / "out", resume=True)
    stream(source, tmp_path / "other")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")


def test_a_finished_run_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    report = stream(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = stream(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before
    assert (again.num_tensors, again.num_bytes) == (report.num_tensors, report.num_bytes)
    with pytest.raises(
        ExportError, match=r"out is of another run: its recipe was .*4, 3.*, now it is .*\"num_bits\": 8"
    ):
        stream(source, tmp_path / "out", "INT8_DEFAULT_CFG", resume=True)


def test_finished_blocks_are_not_done_again(
    source: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = CrashingDisk()
    assert not crashed(monkeypatch, disk, source, interrupted, resume=True)
    assert not any("write" in call and "part-00000" in call for call in disk.calls)
    assert any("write" in call and "part-00001" in call for call in disk.calls)


def test_what_is_there_is_not_overwritten_unasked(source: Path, interrupted: Path) -> None:
    with pytest.raises(
        ExportError, match=r"out.partial holds a run that was interrupted; .*--resume.*--overwrite"
    ):
        stream(source, interrupted)
    stream(source, interrupted, overwrite=True)
    assert (interrupted / "octavo_stream.json").exists()


def test_another_recipe(source: Path, interrupted: Path) -> None:
    with pytest.raises(ExportError, match=r"out.partial is of another run: its recipe was"):
        stream(source, interrupted, "INT8_DEFAULT_CFG", resume=True)


def test_other_data(source: Path, interrupted: Path) -> None:
    data = small_data()
    data[1] = data[1] + torch.tensor(0)
    data[1][0, 0] += 1
    with pytest.raises(
        ExportError, match=r"its calibration data was 2 batches, \w{16}, now it is 2 batches, \w{16}\."
    ):
        stream(source, interrupted, resume=True, data=data)


def test_another_source(interrupted: Path, tmp_path: Path) -> None:
    other = small_source(tmp_path / "source", rms_norm_eps=1e-4)
    with pytest.raises(ExportError, match=r"its config.json of the source was \w{16}, now it is \w{16}"):
        stream(other, interrupted, resume=True)


def test_other_weights(source: Path, interrupted: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for path in source.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    shard = next(other.glob("*-00002-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ExportError, match=rf"its {shard.name} of the source was \d+ bytes, header"):
        stream(other, interrupted, resume=True)


def test_another_version(source: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ExportError, match=r"its torch was .*, now it is 9\.9\.9"):
        stream(source, interrupted, resume=True)


def test_a_torn_last_line_is_dropped(source: Path, interrupted: Path, tmp_path: Path) -> None:
    journal = interrupted.with_name("out.partial") / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"entry": {"kind": "part", "na')
    stream(source, interrupted, resume=True)
    stream(source, tmp_path / "other")
    assert hashes(interrupted) == hashes(tmp_path / "other")


def test_a_damaged_line_is_refused(source: Path, interrupted: Path) -> None:
    journal = interrupted.with_name("out.partial") / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0].replace(b"batches", b"Batches") + b"".join(lines[1:]))
    with pytest.raises(CheckpointError, match=r"journal.jsonl: line 1 of 2 is damaged"):
        stream(source, interrupted, resume=True)


def test_a_part_that_is_gone(source: Path, interrupted: Path) -> None:
    part = interrupted.with_name("out.partial") / "part-00000.bin"
    size = part.stat().st_size
    part.unlink()
    with pytest.raises(
        CheckpointError, match=rf"part-00000.bin is missing, and the journal has it with {size} bytes"
    ):
        stream(source, interrupted, resume=True)


def test_a_second_process_is_refused(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    hold = (
        "import sys, time; from pathlib import Path; from octavo.core.streaming.lock import locked\n"
        f"with locked(Path({str(folder)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ExportError, match=rf"out.partial is being written by process {holder.pid} on "):
            stream(source, tmp_path / "out", resume=True)
        holder.communicate(timeout=30)
    with locked(folder):
        pass


def test_journal_lines_say_their_hash(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("start", fingerprints={"data": "none"})
    journal.add("part", name="a")
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["entry"]["kind"] for line in lines] == ["start", "part"]
    assert all(len(line["sha256"]) == 64 for line in lines)
    assert Journal(tmp_path).entries == [line["entry"] for line in lines]


def test_data_must_be_batches(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="streaming takes calibration data as a list of batches; found a function"
    ):
        stream(source, tmp_path / "out", data=lambda model: None)
