"""Look at the calibration data once, then quantize the bundled model to five formats without running it again.

Run: python examples/calibrate_once.py [--out DIR]
The same from the command line: octavo calibrate MODEL --calib-data TEXT --out DIR; octavo quantize MODEL --stats DIR
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
FORMATS = {
    "INT8": octavo.INT8_DEFAULT_CFG,
    "FP8": octavo.FP8_DEFAULT_CFG,
    "INT4": octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32),
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
    "NVFP4, searched scales": octavo.NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, help="keep the statistics here")
    options = arguments.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        run(options.out or Path(temporary) / "statistics")


def run(folder: Path) -> None:
    """Collect and save statistics, and quantize from the saved ones."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    base = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    calibration, test = (
        octavo.text_batches(tokenizer, DATA / f"{part}.jsonl", sequence_length=256)
        for part in ("calibration", "test")
    )
    tokens = 0

    def count(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        nonlocal tokens
        tokens += (args[0] if args else kwargs["input_ids"]).numel()

    start = time.process_time()
    base.register_forward_pre_hook(count, with_kwargs=True)  # copies count, too
    octavo.collect_statistics(base, calibration, quiet=True).save(folder)
    print(f"statistics: {tokens} tokens run, {time.process_time() - start:.1f} CPU s")
    print("| format | tokens run (a probe's, no data) | CPU s | KL |\n|---|---|---|---|")
    for name, config in FORMATS.items():
        model = copy.deepcopy(base)
        tokens, start = 0, time.process_time()
        octavo.quantize(model, config, statistics=folder, quiet=True)
        spent, needed = time.process_time() - start, tokens
        kl = octavo.compare(model, base, test).kl
        print(f"| {name} | {needed} | {spent:.2f} | {kl:.4f} |")


if __name__ == "__main__":
    main()
