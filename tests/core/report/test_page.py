"""The report's page, as a browser shows it: what its table holds once scripts ran, and that something is drawn."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from octavo.core.report.files import PAGE_FILE, write_report

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--window-size=1200,1000",
)  # fmt: skip
Browser = Callable[..., str]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Run Chromium with these arguments; what it prints."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")

    def run(*arguments: str) -> str:
        command = [program, *_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    return run


class Page(HTMLParser):
    """The cells of the table of weights, row by row, those of hidden rows apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.hidden = 0
        self.circles = 0
        self.outside: list[str] = []
        self._in_table = self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href")]
        self.circles += tag == "circle"
        self._in_table = values.get("id") == "weights" if tag == "table" else self._in_table
        if tag == "tr" and self._in_table:
            self.rows.append([])
            self.hidden += "hidden" in values
        if tag in ("td", "th") and self._in_table:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")
        self._in_table = self._in_table and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def pixels(path: Path) -> bytes:
    """Return the rows of a PNG, filtered."""
    data, place, found = path.read_bytes(), 8, b""
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        found += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += length + 12
    return zlib.decompress(found)


def report(num_rows: int) -> dict[str, Any]:
    """A report with weights of five kinds in each block; ratios in an order of their own, the last one unknown."""
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj<&>")
    rows = [
        {
            "weight": f"model.layers.{i // 5}.{kinds[i % 5]}.weight",
            "depth": i // 5,
            "format": "NVFP4, dynamic, blocks of 16",
            "inputs": None,
            "algorithms": ["nearest"],
            "weight_sqnr_db": None if i == num_rows - 1 else 9 + (i * 7 % 11) / 2,
            "output_sqnr_db": 100.0 + i,
            "fallback": "3 tokens, fewer than 64: rounded to nearest" if i == 1 else None,
            "steps": [{"algorithm": "nearest", "alpha": 0.55, "damping": 0.01}],
        }
        for i in range(num_rows)
    ]
    return {
        "version": 1, "model": "Model<&>", "config": {"algorithm": "nearest"}, "exporter": "unified_hf",
        "totals": {"weights": num_rows, "fallbacks": 1, "tensors": 9, "bytes": 5_000_000}, "weights": rows,
        "tokens_per_expert": {"model.layers.0.experts": [0, 9, 5]}, "left_out": ["lm_head"], "differences": [],
        "warnings": ["expert 0 was never chosen"],
        "cost": {"seconds": 3.25, "cpu_seconds": 6.5, "seconds_of": {"data": 3.0}, "peak_bytes": 10**9},
    }  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_report(tmp_path, report(15))
    return (tmp_path / PAGE_FILE).as_uri()


def test_the_page_shows_every_weight(browser: Browser, page: str, tmp_path: Path) -> None:
    text = browser("--dump-dom", f"--screenshot={tmp_path / 'page.png'}", page)
    found = Page(text)

    assert len(found.rows) == 1 + 15
    assert found.rows[2] == [
        "model.layers.0.self_attn.o_proj.weight", "0", "NVFP4, dynamic, blocks of 16", "", "nearest", "12.5", "101.0",
        "alpha=0.55, damping=0.01", "3 tokens, fewer than 64: rounded to nearest",
    ]  # fmt: skip
    assert "mlp.down_proj<&>" in found.rows[5][0]
    assert found.circles == 14 + 15
    assert found.outside == []
    assert "15 of 15 rows" in text
    # Of a blank page, every byte of the filtered rows but the first pixel's is 0 or 255.
    drawn = sum(byte not in (0, 255) for byte in pixels(tmp_path / "page.png"))
    assert drawn > 20_000


@pytest.mark.parametrize("column", [0, 5])
def test_a_click_sorts(browser: Browser, page: str, column: int) -> None:
    found = Page(browser("--dump-dom", f"{page}#sort={column},filter=down_proj"))

    cells = [row[column] for row in found.rows[1:]]
    filled = [cell for cell in cells if cell]
    assert filled == sorted(filled, key=float if column else str)
    assert cells[len(filled) :] == [""] * (15 - len(filled)), "what is not known comes last"
    assert found.hidden == 15 - 3
