"""Whether an engine loads quantized weights of vision towers (vision_towers.yaml), which presets leave alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.model.exporter import Verdict


def tower_verdicts(exporter: str, target: str, names: Iterable[str]) -> dict[Verdict, list[str]]:
    """Return {verdict: layers} on those of `names` that are parts of a vision tower, in `exporter`'s files."""
    rule = _table()["verdicts"].get(exporter, {}).get(target)
    found: dict[Verdict, list[str]] = {}
    for name in names:
        if not _has_word(name, _table()["words"]):
            continue
        verdict = Verdict("unknown", "a quantized vision tower was never tried there")
        if rule is not None and _has_word(name, rule["words"]):
            verdict = Verdict(rule["status"], rule["evidence"])
        found.setdefault(verdict, []).append(name)
    return found


def _has_word(name: str, words: Iterable[str]) -> bool:
    return any(word in name for word in words)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("vision_towers.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
