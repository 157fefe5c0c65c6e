"""Which engine loads what: the table of unified-hf.md section 6, row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.exporters_formats import layer_of
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.unified_hf.exporter import EXPORTER
from octavo.exporters.unified_hf.schemes import schemes

ENGINES = ("vllm", "sglang", "trtllm", "transformers")
COLUMNS = {"vllm": 1, "sglang": 3, "trtllm": 4, "transformers": 5}  # column 2 is vLLM with experts
# L, l: loads. R, r: refused. M: loads wrongly, which is worse. ?: not established.
STATUS = {"L": "loads", "l": "loads", "R": "refused", "r": "refused", "M": "refused", "?": "unknown"}
OWN_NAMES = ("W4A16_MXFP4", "MXFP6", "MXINT8")
NO_ROW = (*OWN_NAMES, "NVFP4_SVD")
BLOCK_32 = PerBlock(((-1, 32),))


def table(shared: Path) -> dict[tuple[str, str], str]:
    """Return {(quant_algo in upper case, engine): status} of section 6."""
    text = (shared / "specs" / "unified-hf.md").read_text(encoding="utf-8").partition("## 6.")[2]
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:2] == "| "
    ]
    return {
        (name.strip().upper(), engine): STATUS[row[index][0]]
        for row in rows[1:]
        for name in row[0].split(",")
        for engine, index in COLUMNS.items()
        if not name.strip().startswith("KV") and row[index][0] in STATUS
    }


def verdicts() -> dict[tuple[str, str], str]:
    return {
        (scheme.quant_algo.upper(), engine): EXPORTER.serves(engine, layer_of(scheme, 16)).status
        for scheme in schemes()
        for engine in ENGINES
    }


def test_verdicts_are_those_of_the_specification(shared: Path) -> None:
    expected, found = table(shared), verdicts()
    known = [(name, engine) for name, engine in found if name not in NO_ROW and engine != "transformers"]
    assert len(known) == 14 * 3

    different = {key: (found[key], expected[key]) for key in known if found[key] != expected[key]}

    assert different == {}


def test_transformers_loads_nothing_rightly(shared: Path) -> None:
    expected = table(shared)

    assert {status for (_, engine), status in expected.items() if engine == "transformers"} == {
        "refused",
        "unknown",
    }
    assert {status for (_, engine), status in verdicts().items() if engine == "transformers"} == {"refused"}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_nobody_reads_names_of_our_own(engine: str) -> None:
    assert {verdicts()[name, engine] for name in OWN_NAMES} == {"refused"}


def test_every_verdict_has_evidence() -> None:
    for scheme in schemes():
        for engine in ENGINES:
            verdict = EXPORTER.serves(engine, layer_of(scheme, 16))
            assert len(verdict.evidence) >= 5
            if verdict.status == "unknown":
                assert verdict.evidence == f"{scheme.quant_algo} was never tried there"


def test_a_format_without_a_scheme_is_refused() -> None:
    verdict = EXPORTER.serves("vllm", LayerFormat(QuantSpec("e5m2"), None))

    assert (verdict.status, verdict.evidence) == (
        "refused",
        "the unified HF dialect cannot store this format",
    )


def test_nvfp4_blocks_of_another_length_were_never_tried() -> None:
    weight = QuantSpec("e2m1", BLOCK_32, "e4m3", 2688.0, dynamic=True)

    assert EXPORTER.serves("vllm", LayerFormat(weight, None)).status == "unknown"
