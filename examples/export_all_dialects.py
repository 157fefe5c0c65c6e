"""One run, three dialects: quantize the bundled model once, write it in each, and convert one into another.

Each checkpoint is verified for a reader that serves its dialect, and read back. FP8 in ModelOpt's dialect has a scale
for each of q, k and v, of which vLLM keeps one: its values are rounded again, by vLLM or, better, by whoever converts.
INT4 is what vLLM refuses in that dialect, and loads, unchanged, in the other.

Run: python examples/export_all_dialects.py [--out DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
FORMATS = {
    "fp8": octavo.merge_configs(octavo.FP8_DEFAULT_CFG, octavo.FP8_KV_CFG),
    # AWQ's clipping alone: compressed-tensors has no place for its factors on inputs.
    "int4_awq": {**octavo.with_block_size(octavo.INT4_AWQ_CFG, 32), "algorithm": "awq_clip"},
}
# Dialects, and a reader of each; `converted` is the first in the second.
READERS = {
    "unified_hf": "vllm",
    "compressed_tensors": "transformers",
    "tensorrt_llm": "trtllm",
    "converted": "vllm",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, help="keep the checkpoints here")
    arguments.add_argument("--json", action="store_true", help="print rows as JSON")
    options = arguments.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        rows = [row for name in FORMATS for row in run(name, (options.out or Path(temporary)) / name)]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)


def run(name: str, out: Path) -> list[dict[str, Any]]:
    """Quantize to one format; write it in every dialect, verify and read back."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    calibration, test = (
        octavo.text_batches(tokenizer, DATA / f"{part}.jsonl", num_samples=16, sequence_length=256)
        for part in ("calibration", "test")
    )
    octavo.quantize(model, FORMATS[name], calibration, quiet=True)
    changed = write(model, tokenizer, out)
    rows = []
    for dialect, reader in READERS.items():
        folder = out / dialect
        findings = [finding.severity for finding in octavo.verify_checkpoint(folder, reader)]
        read_back = octavo.load_quantized(folder, config=MODEL)
        rows.append(
            {
                "format": name,
                "dialect": dialect,
                "files": sum(path.is_file() for path in folder.iterdir()),
                "megabytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
                "perplexity": octavo.perplexity(read_back, test),
                "codes_changed": changed if dialect == "converted" else 0.0,
                "reader": reader,
                "errors": findings.count("error"),
                "warnings": findings.count("warning"),
            }
        )
    return rows


def write(model: nn.Module, tokenizer: Any, out: Path) -> float:
    """Write the checkpoints; return the share of codes that converting changed."""
    octavo.export_hf_checkpoint(model, export_dir=out / "unified_hf", tokenizer=tokenizer, quiet=True)
    octavo.export_hf_checkpoint(
        model, export_dir=out / "compressed_tensors", tokenizer=tokenizer, quiet=True, target="transformers"
    )
    octavo.export_tensorrt_llm_checkpoint(
        model, export_dir=out / "tensorrt_llm", inference_tensor_parallel=2, quiet=True, target="trtllm"
    )
    # From here on the model is not needed. `octavo convert SRC DST --to … --target vllm --lossy` does the same.
    report = octavo.convert_checkpoint(
        out / "unified_hf", out / "converted", "compressed_tensors", target="vllm", lossy=True, quiet=True
    )
    return report.share_of_codes


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows with rich."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{MODEL.name}: quantized once, written in three dialects")
    for column in (
        "format",
        "dialect",
        "files",
        "MB",
        "perplexity",
        "codes changed",
        "reader",
        "errors",
        "warnings",
    ):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["format"],
            row["dialect"],
            str(row["files"]),
            f"{row['megabytes']:.2f}",
            f"{row['perplexity']:.4f}",
            f"{row['codes_changed']:.0%}",
            row["reader"],
            str(row["errors"]),
            str(row["warnings"]),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
