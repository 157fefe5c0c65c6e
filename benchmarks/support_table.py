"""Writes docs/support.md from the results of tests/families: one row per family, one cell per format."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "families" / "test_families.py"
ROUND_TRIP = "test_a_checkpoint_computes_what_the_finalized_model_does"


class Recorder:
    """Keeps whether each family passed in each format; a pytest plugin."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of one test."""
        test, _, parameters = report.nodeid.partition("[")
        if report.when == "call" and test.endswith(ROUND_TRIP):
            name, _, format_name = parameters.removesuffix("]").rpartition("-")
            self.passed[name, format_name] = report.passed


def main() -> int:
    recorder = Recorder()
    status = pytest.main(["--quiet", "--rootdir", str(ROOT), str(TESTS)], plugins=[recorder])
    sys.path.append(str(ROOT / "tests"))
    from helpers.family_cases import support_table

    (ROOT / "docs" / "support.md").write_text(support_table(recorder.passed), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
