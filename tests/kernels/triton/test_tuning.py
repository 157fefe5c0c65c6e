"""Choices of launches: deterministic unless asked for, kept in files that may be stale or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.core.errors import ConfigError
from octavo.kernels.triton import tuning

CANDIDATES = [{"tile": 64, "num_warps": 4}, {"tile": 128, "num_warps": 8}, {"tile": 256, "num_warps": 8}]
SERVED = tuning.Problem("fake_quantize", "abc", "e4m3 bf16", (4096, 4096), "NVIDIA H100 9.0", "3.9.0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_chosen", {})
    return tmp_path / "octavo" / "triton"


def choose(fastest: int, ran: list[int], served: tuning.Problem = SERVED) -> tuning.Launch:
    """Choose where the launch with the tile `fastest` takes least time; `ran` collects what was measured."""

    def measure(call: Callable[[], object]) -> float:
        call()
        return abs(ran[-1] - fastest)

    return tuning.chosen(CANDIDATES, lambda: served, lambda launch: ran.append(launch["tile"]), measure)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as a new process would."""
    monkeypatch.setattr(tuning, "_chosen", {})


@pytest.mark.parametrize("value", ["", "0"])
def test_without_the_variable_the_first_candidate_is_used_and_no_file_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OCTAVO_AUTOTUNE", value)
    ran: list[int] = []
    assert choose(256, ran) == CANDIDATES[0]
    assert ran == []
    assert not folder.exists()


def test_another_value_of_the_variable_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_AUTOTUNE", "always")
    with pytest.raises(ConfigError, match="OCTAVO_AUTOTUNE='always'; expected 1"):
        choose(64, [])


def test_the_fastest_is_measured_once_and_kept_for_later_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    assert choose(128, ran) == CANDIDATES[1]
    assert ran == [64, 128, 256]
    assert choose(64, ran) == CANDIDATES[1]
    forget(monkeypatch)
    assert choose(64, ran) == CANDIDATES[1]
    assert ran == [64, 128, 256]
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["launch"] == {"tile": 128, "num_warps": 8}


@pytest.mark.parametrize(
    "change",
    [
        {"source": "abd"},
        {"device": "NVIDIA A100 8.0"},
        {"triton": "3.10.0"},
        {"bucket": (8192, 4096)},
        {"variant": "e4m3 fp16"},
    ],
)
def test_another_problem_is_measured_for_itself(folder: Path, change: dict[str, object]) -> None:
    choose(128, [])
    ran: list[int] = []
    assert choose(256, ran, replace(SERVED, **change)) == CANDIDATES[2]  # type: ignore[arg-type]
    assert ran == [64, 128, 256]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no launch"),
        (b"\xff\xfe\x00", "holds no launch"),
        (b"[1]", "holds no launch"),
        (b'{"launch": {}}', "holds no launch"),
        (b'{"problem": {"kernel": "amax"}, "launch": {"tile": 64, "num_warps": 4}}', "'kernel': 'amax'"),
    ],
)
def test_damaged_files_are_noted_and_written_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str
) -> None:
    choose(128, [])
    (file,) = folder.iterdir()
    file.write_bytes(content)
    forget(monkeypatch)
    with pytest.warns(UserWarning, match=says):
        assert choose(256, []) == CANDIDATES[2]
    assert json.loads(file.read_text())["launch"] == CANDIDATES[2]


def test_a_launch_that_is_no_candidate_any_more_is_noted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(128, [])
    (file,) = folder.iterdir()
    file.write_text(file.read_text().replace("128", "512"))
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="'tile': 512.*none of today's candidates"):
        assert choose(64, []) == CANDIDATES[0]


def test_a_folder_that_cannot_be_written_is_noted(folder: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"not kept: .*octavo"):
        assert choose(256, []) == CANDIDATES[2]


def test_lengths_fall_into_powers_of_two() -> None:
    assert tuning.bucket([0, 1, 2, 3, 4096, 4097]) == (0, 1, 2, 4, 4096, 8192)
