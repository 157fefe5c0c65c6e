"""Sample the demo's calibration and test texts from the unquantized bundled model, with a fixed seed.

Run: python examples/data/sample_texts.py        (rewrites calibration.jsonl and test.jsonl beside this file)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
SIZES = {"calibration.jsonl": 44, "test.jsonl": 56}


def main() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(HERE / "stories260k").eval()
    tokenizer = AutoTokenizer.from_pretrained(HERE / "stories260k")
    for name, count in SIZES.items():
        start = torch.full((count, 1), tokenizer.bos_token_id)
        ids = model.generate(start, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=255)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        lines = [json.dumps({"text": text.strip()}, ensure_ascii=False) for text in texts]
        (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
