"""Quantize a Hugging Face causal language model to NVFP4 with an FP8 KV cache, and export it.

Run: python examples/quantize_and_export.py [MODEL_DIR] [CALIBRATION_TEXT] [OUT_DIR]
Without arguments: the bundled model and texts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo

DATA = Path(__file__).parent / "data"


def main(model_dir: Path, text: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = octavo.merge_configs(octavo.NVFP4_DEFAULT_CFG, octavo.FP8_KV_CFG)

    octavo.quantize(model, config, octavo.text_batches(tokenizer, text, num_samples=128, sequence_length=256))
    report = octavo.export_hf_checkpoint(model, export_dir=out, tokenizer=tokenizer)

    print(f"{report.directory}: {report.num_tensors} tensors, {report.num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    if len(paths) == 3:
        main(*paths)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(DATA / "stories260k", DATA / "calibration.jsonl", Path(folder) / "nvfp4")
