"""Quantize a model to FP8, export it for TensorRT-LLM on one rank, and divide the checkpoint over other ranks.

Run: python examples/reshard_trtllm.py [MODEL_DIR] [CALIBRATION_TEXT] [OUT_DIR] [TP] [PP]
Without arguments: the bundled model and texts, on four ranks in one stage.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo

DATA = Path(__file__).parent / "data"


def main(model_dir: Path, text: Path, out: Path, tp: int = 4, pp: int = 1) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = octavo.merge_configs(octavo.FP8_DEFAULT_CFG, octavo.FP8_KV_CFG)
    octavo.quantize(model, config, octavo.text_batches(tokenizer, text, num_samples=64, sequence_length=128))
    octavo.export_tensorrt_llm_checkpoint(model, export_dir=out / "one_rank")

    # From here on the model is not needed; `octavo reshard DIR --tp 4 --out DIR2` does the same.
    report = octavo.reshard_tensorrt_llm(out / "one_rank", out / "many_ranks", tp_size=tp, pp_size=pp)
    octavo.reshard_tensorrt_llm(out / "many_ranks", out / "back")

    before, after = ((out / name / "rank0.safetensors").read_bytes() for name in ("one_rank", "back"))
    print(f"{tp * pp} ranks: {report.num_tensors} tensors, {report.num_bytes / 1e6:.2f} MB")
    print(f"put together again: {'the same' if before == after else 'other'} bytes")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) >= 3:
        main(*map(Path, arguments[:3]), *map(int, arguments[3:5]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(DATA / "stories260k", DATA / "calibration.jsonl", Path(folder))
