"""docs/consumers.md says what the tables of evidence say, and what vLLM's loading code made of our exports."""

from __future__ import annotations

import json

from helpers.consumer_page import PAGE, RUNS, consumer_page


def test_the_page_is_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == consumer_page(), "run benchmarks/consumers_table.py"


def test_verify_says_what_vllm_did() -> None:
    rows = json.loads(RUNS.read_text(encoding="utf-8"))

    assert {row["model"] for row in rows} == {"dense", "tied", "moe"}
    assert [row for row in rows if row["verify"] not in (row["vllm"], "unknown")] == []
    loaded = [row for row in rows if row["vllm"] == "loads"]
    assert [row for row in loaded if not row["difference"].startswith("0")] == []
    assert len(loaded) == len(rows) - 3
