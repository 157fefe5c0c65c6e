"""Quantize an imported Hugging Face model inside Megatron-core, and measure it there.

Run: torchrun --nproc-per-node 2 examples/megatron/ptq.py --tp 2 --format fp8
"""

from __future__ import annotations

from common import FORMATS, arguments, calibration, joined, perplexity, windows

import octavo
from octavo.adapters.megatron_core.conversion import import_huggingface


def main() -> None:
    options = arguments(__doc__)
    with joined(options.tp, options.pp) as rank:
        model = import_huggingface(options.model).eval()
        texts = windows(options.model, "test.jsonl", 4)
        before = perplexity(model, texts)
        data = calibration(windows(options.model, "calibration.jsonl", 4))
        octavo.quantize(model, FORMATS[options.format], data, quiet=rank > 0)
        after = perplexity(model, texts)
        if rank == 0:
            print(f"perplexity {before:.4f}, in {options.format} {after:.4f}")


if __name__ == "__main__":
    main()
