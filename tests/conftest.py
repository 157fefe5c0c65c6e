"""Fixtures and guards of the whole test suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# With the root on the path, the folder `kernels` would shadow Hugging Face's package of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Small tensors: a second thread only waits, and tests run in one process per core already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _quiet_frameworks() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared; without it the test is skipped, or fails where it is required."""
    if not SHARED.is_dir():
        reason = f"{SHARED} is absent"
        if os.environ.get("OCTAVO_REQUIRE_SHARED") == "1":
            pytest.fail(f"{reason} and OCTAVO_REQUIRE_SHARED=1")
        pytest.skip(reason)
    return SHARED


@pytest.fixture(scope="session")
def cpu_kernels() -> None:
    """The compiled kernels: skipped without a C++ compiler, a failure where there is one and they are missing."""
    from octavo.kernels.cpu.build import find_compiler
    from octavo.kernels.cpu.kernels import CPU

    if reason := CPU.missing():
        (pytest.skip if find_compiler() is None else pytest.fail)(reason)


@pytest.fixture
def reference_kernels() -> Iterator[None]:
    """The reference alone, whose products with packed weights are those with the values: in the same order of sums."""
    from octavo.core.ops.kernels import using

    with using("reference"):
        yield


@pytest.fixture(scope="session")
def stories() -> Path:
    """The bundled trained model."""
    return ROOT / "examples" / "data" / "stories260k"
