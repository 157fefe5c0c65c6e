"""A disk that fills up while a model is saved: a real one where a small one can be mounted, a file limit elsewhere."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from helpers.model_folders import contents
from octavo.core.errors import ExportError
from octavo.core.model.atomic_folder import atomic_folder

LIMIT = 400_000  # a model of one such file fits, a second copy beside it does not


@pytest.fixture(params=["tmpfs", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which no more than 400 kB can be written, for real."""
    if request.param == "tmpfs":
        (tmp_path / "disk").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={LIMIT // 1024}k", "tmpfs", str(tmp_path / "disk")]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting takes rights that this user has not; the file size limit stands for it")
        yield tmp_path / "disk"
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Linear(width, 3))


def failing_save(large: nn.Module, place: Path) -> BaseException:
    with pytest.raises(BaseException, match=r"File too large|No space left") as caught:
        octavo.save(large, place, overwrite=True)
    return caught.value


def test_the_old_folder_stays_whole_and_nothing_is_left_beside_it(disk: Path) -> None:
    small = model(64)
    octavo.save(small, disk / "out")
    before = contents(disk)

    failing_save(model(400), disk / "out")

    assert contents(disk) == before
    assert os.listdir(disk) == ["out"]
    restored = octavo.restore(model(64), disk / "out")
    assert torch.equal(restored(torch.ones(1, 64)), small(torch.ones(1, 64)))


def test_nothing_appears_under_the_final_name(disk: Path) -> None:
    failing_save(model(400), disk / "out")

    assert os.listdir(disk) == []


def test_after_room_is_made_the_same_call_succeeds(disk: Path) -> None:
    failing_save(model(400), disk / "out")

    octavo.save(model(64), disk / "out")

    assert set(contents(disk)) == {"out/model.safetensors", "out/octavo_modes.json"}


def test_the_error_says_what_failed_and_what_became_of_the_folder(disk: Path) -> None:
    error = failing_save(model(400), disk / "out")

    assert isinstance(error, ExportError)
    assert str(error).startswith(f"writing {disk / 'out'} failed: ")
    assert str(error).endswith("Nothing was put there; what was there before is whole")


def test_other_files_that_do_not_fit_are_reported_in_that_form(disk: Path) -> None:
    message = rf"^writing {disk / 'out'} failed: .*(File too large|No space left).*Nothing was put there"

    with pytest.raises(ExportError, match=message), atomic_folder(disk / "out", overwrite=False) as folder:
        (folder / "tokenizer.json").write_bytes(b"x" * (LIMIT + 100_000))

    assert os.listdir(disk) == []
