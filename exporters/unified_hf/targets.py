"""Which engine loads which scheme of this dialect (targets.yaml)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.model.exporter import LayerFormat, Verdict
from octavo.exporters.unified_hf.schemes import scheme_for


def verdict(target: str, layer: LayerFormat) -> Verdict:
    """Return whether the engine `target` loads a layer of this format from a unified HF checkpoint."""
    scheme = scheme_for(layer)
    if scheme is None:
        return Verdict("refused", "the unified HF dialect cannot store this format")
    if target == "transformers":
        return Verdict(**_table()["transformers_all"])
    row = _table().get(scheme.quant_algo, {}).get(target)
    return (
        Verdict(**row)
        if row is not None
        else Verdict("unknown", f"{scheme.quant_algo} was never tried there")
    )


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("targets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
