"""docs/support.md says what the cases of this folder prove, no more and no less."""

from __future__ import annotations

from pathlib import Path

from helpers.family_cases import FORMATS, family_cases, support_table

TABLE = Path(__file__).parents[2] / "docs" / "support.md"


def test_the_table_is_what_the_cases_say() -> None:
    """`test_families.py` proves each cell; a failing one would be written as `no`."""
    passed = {(name, format_name): True for name in family_cases() for format_name in FORMATS}

    assert TABLE.read_text(encoding="utf-8") == support_table(passed), "run benchmarks/support_table.py"


def test_a_failure_is_a_no() -> None:
    passed = {
        (name, format_name): format_name != "INT4" for name in family_cases() for format_name in FORMATS
    }

    assert "| Mistral | `mistral` | map `mistral` | yes | yes | no | yes |" in support_table(passed)


def test_there_are_as_many_families_as_we_claim() -> None:
    assert len({case.config["model_type"] for case in family_cases().values()}) >= 40
