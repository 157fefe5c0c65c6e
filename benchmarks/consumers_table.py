"""Writes docs/consumers.md from the tables of which reader loads what, and from what vllm_loads.py kept."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers.consumer_page import PAGE, consumer_page

    PAGE.write_text(consumer_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
