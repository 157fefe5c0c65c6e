"""Quantize the bundled trained model in six formats, export, read back, and print what it costs.

Run: make demo        (or: python examples/demo.py [--out DIR] [--json])
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
SEQUENCE_LENGTH = 256
ROWS = {
    "FP8": octavo.FP8_DEFAULT_CFG,
    "INT8": octavo.INT8_DEFAULT_CFG,
    "INT4 (blocks of 32)": octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32),
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
    "MXFP8": octavo.MXFP8_DEFAULT_CFG,
    "MXFP4": octavo.MXFP4_DEFAULT_CFG,
}
NOTE = (
    "Texts were sampled from the unquantized model with a fixed seed (examples/data/SOURCE.md): perplexity here "
    "shows how far a format moves the model, not how good it is."
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, help="keep the checkpoints here")
    arguments.add_argument("--json", action="store_true", help="print rows as JSON")
    options = arguments.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        rows = [run(name, config, options.out or Path(temporary)) for name, config in ROWS.items()]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)
    different = [row["format"] for row in rows if not row["read_back_equal"]]
    if different:
        sys.exit(f"read-back perplexity differs from the fake-quantized model's for {', '.join(different)}")


def run(name: str, config: dict[str, Any], out: Path) -> dict[str, Any]:
    """Quantize, calibrate, export, read back and measure one format."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    base, model = (AutoModelForCausalLM.from_pretrained(MODEL).eval() for _ in range(2))
    calibration, test = (
        octavo.text_batches(tokenizer, DATA / f"{part}.jsonl", sequence_length=SEQUENCE_LENGTH)
        for part in ("calibration", "test")
    )
    start = time.perf_counter()
    octavo.quantize(model, config, calibration, quiet=True)
    folder = out / name.split()[0].lower()
    report = octavo.export_hf_checkpoint(
        model, export_dir=folder, tokenizer=tokenizer, overwrite=True, quiet=True
    )
    seconds = time.perf_counter() - start
    with octavo.finalized(model, "unified_hf"):
        fake = octavo.perplexity(model, test)
    read_back = octavo.compare(octavo.load_quantized(folder), base, test)
    plan = octavo.plan(base, config)
    quantized = [tensor for tensor in plan.tensors if tensor.weight]
    bits = 8 * sum(t.bytes_after for t in quantized) / sum(t.num_values for t in quantized)
    return {
        "format": name,
        "bits_per_weight": bits,
        "megabytes": report.num_bytes / 1e6,
        "perplexity_base": read_back.reference_perplexity,
        "perplexity_fake": fake,
        "perplexity": read_back.perplexity,
        "read_back_equal": math.isclose(fake, read_back.perplexity, rel_tol=1e-6),
        "kl": read_back.kl,
        "seconds": seconds,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows with rich."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{MODEL.name}: {rows[0]['perplexity_base']:.3f} perplexity unquantized", caption=NOTE
    )
    table.add_column("format")
    for column in ("bits/weight", "MB", "perplexity base -> quantized", "KL", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        ratio = row["perplexity"] / row["perplexity_base"]
        table.add_row(
            row["format"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['megabytes']:.2f}",
            f"{row['perplexity_base']:.4f} -> {row['perplexity']:.4f} (x{ratio:.3f})",
            f"{row['kl']:.4f}",
            f"{row['seconds']:.1f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
