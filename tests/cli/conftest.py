"""What all tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.adapters_threads import one_thread
from helpers.cli_runner import DATA, MODEL, Run, runner


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def octavo_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`octavo`, in this process."""
    return runner(capsys, monkeypatch)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 checkpoint with an FP8 cache of the bundled model; not to be changed."""
    import octavo
    from octavo.core.plugins import plugins

    directory = tmp_path_factory.mktemp("cli") / "checkpoint"
    model, tokenizer = plugins().load_model(MODEL, None, False), plugins().load_tokenizer(MODEL, False)
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    octavo.quantize(model, config, octavo.text_batches(tokenizer, DATA[1], 4, 32), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=directory, tokenizer=tokenizer, quiet=True)
    return directory
