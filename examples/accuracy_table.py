"""Quantize the bundled model to several formats, by several algorithms, and print what each costs in accuracy.

Run: python examples/accuracy_table.py [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
INT4 = octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32)
RECIPES: list[tuple[str, dict[str, Any], str]] = [  # format, config, algorithm
    ("INT8", octavo.INT8_DEFAULT_CFG, "max"),
    ("INT4, blocks of 32", INT4, "max"),
    ("INT4, blocks of 32", INT4, "mse"),
    ("NVFP4", octavo.NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG, "max"),
    ("NVFP4", octavo.NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG, "mse"),
]
OPTIONS = {"NVFP4": {"mse": {"method": "mse", "fp8_scale_sweep": True}}}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="print rows as JSON")
    options = arguments.parse_args()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    base = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    calibration, test = (
        octavo.text_batches(tokenizer, DATA / f"{part}.jsonl", sequence_length=256)
        for part in ("calibration", "test")
    )
    rows = []
    for name, config, algorithm in RECIPES:
        chosen = config | {"algorithm": OPTIONS.get(name, {}).get(algorithm, algorithm)}
        model = octavo.quantize(copy.deepcopy(base), chosen, calibration, quiet=True)
        found = octavo.compare(model, base, test)
        rows.append(
            {
                "format": name,
                "algorithm": algorithm,
                "perplexity_base": found.reference_perplexity,
                "perplexity": found.perplexity,
                "kl": found.kl,
            }
        )
    print(json.dumps(rows, indent=2) if options.json else table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| format | algorithm | perplexity before | after | KL |", "|---|---|---|---|---|"]
    for row in rows:
        before, after = row["perplexity_base"], row["perplexity"]
        lines.append(
            f"| {row['format']} | {row['algorithm']} | {before:.3f} | {after:.3f} | {row['kl']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
