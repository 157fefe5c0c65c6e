"""The library is compiled when it is not there, whole and of these sources; without a compiler, that is said once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cpu import build, library

FUNCTION = '#include "isa.h"\nOCTAVO_EXPORT(answer)(int* to) { *to = 42; }\n'
SCRIPT = """
import sys
from pathlib import Path
from octavo.kernels.cpu import build, library
build.SOURCES, library.INSTALLED = Path(sys.argv[1]), Path(sys.argv[1])
print(library.library().isa, library.library().missing)
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few sources, an empty cache and no installed library."""
    folder = tmp_path / "src"
    (folder / "base").mkdir(parents=True)
    for name in ("isa.h", "base/isa.cpp"):
        shutil.copy(build.SOURCES / name, folder / name)
    (folder / "answer.cpp").write_text(FUNCTION)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(library, "INSTALLED", tmp_path)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return folder


def _libraries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(build.LIBRARY))


def test_it_is_compiled_once_and_again_when_it_is_damaged(sources: Path, tmp_path: Path) -> None:
    first = library.library.__wrapped__()
    assert first.missing is None
    assert first.isa in build.INSTRUCTION_SETS
    (path,) = _libraries(tmp_path)
    made = path.stat().st_mtime_ns

    assert library.library.__wrapped__().missing is None
    assert path.stat().st_mtime_ns == made

    # A new file, for a library in use must never be cut short.
    path.unlink()
    path.write_bytes(b"\x7fELF, cut short")
    assert build.fresh(path.parent) is None
    assert library.library.__wrapped__().missing is None
    assert build.fresh(path.parent) == path


def test_other_sources_make_another_library(sources: Path, tmp_path: Path) -> None:
    library.library.__wrapped__()
    (old,) = _libraries(tmp_path)
    (sources / "answer.cpp").write_text(FUNCTION.replace("42", "43"))

    assert build.fresh(old.parent) is None
    assert library.library.__wrapped__().missing is None
    assert len(_libraries(tmp_path)) == 2


def test_processes_that_start_together_share_one(sources: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(sources)]
    running = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in running]

    assert [process.returncode for process in running] == [0, 0], outputs
    assert all(out.split()[1] == "None" for out, _ in outputs)
    assert sum("compiling CPU kernels" in error for _, error in outputs) == 1
    assert len(_libraries(tmp_path)) == 1


def test_no_compiler_is_said(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")

    assert library.library.__wrapped__().missing == "no C++ compiler found (CXX, c++, g++, clang++)"
    assert "the slower reference runs instead: no C++ compiler found" in capsys.readouterr().err


def test_a_compiler_that_fails_is_said_with_its_words(sources: Path, tmp_path: Path) -> None:
    (sources / "answer.cpp").write_text("#error these words\n")

    reason = library.library.__wrapped__().missing

    assert reason is not None
    assert "ended with 1" in reason
    assert "these words" in reason
    assert not _libraries(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))

    reason = library.library.__wrapped__().missing

    assert reason is not None
    assert str(tmp_path / "file") in reason


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert library.cache_folder() == Path("/somewhere/octavo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.cache_folder() == Path.home() / ".cache" / "octavo"
