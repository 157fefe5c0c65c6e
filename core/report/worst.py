"""The weights of a report that lost most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def worst_weights(report: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the rows of the `count` weights with the lowest ratio of signal to noise, the worst first.

    The output's ratio decides where all weights have one, else the weight's.
    """
    rows = [row for row in report["weights"] if row["weight_sqnr_db"] is not None]
    by_output = all(row["output_sqnr_db"] is not None for row in rows)
    key = "output_sqnr_db" if by_output else "weight_sqnr_db"
    return sorted(rows, key=lambda row: float(row[key]))[:count]


def sparing_entries(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return entries of a `quant_cfg` that turn off the layers of `rows`; stacked experts as a whole."""
    layers = dict.fromkeys(row["weight"].partition("[")[0].rpartition(".")[0] for row in rows)
    return [{"quantizer_name": f"{layer}.*".removeprefix("."), "enable": False} for layer in layers]
