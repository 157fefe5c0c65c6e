"""Train a model with its quantizers on, in the stock Trainer: one callback, then a checkpoint that engines load.

Run: python examples/qat_trainer.py [--steps 200] [--bits 3] [--out DIR] [--json]
The bundled model in blocks of 32 weights, trained on the bundled texts; perplexity of other texts before and after.
Stopped with --stop-at STEP and run again with --resume, it writes the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
LENGTH = 64


class StopAt(TrainerCallback):
    """End the run after a step, as an interruption does, with a checkpoint."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for a checkpoint, and for no further step."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def main() -> None:
    options = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = weights_of(options.bits)
    test = octavo.text_batches(tokenizer, DATA / "test.jsonl", num_samples=32, sequence_length=128)

    model = AutoModelForCausalLM.from_pretrained(MODEL)
    rows = {"original": octavo.perplexity(model, test)}
    rows["rounded, not trained"] = octavo.perplexity(
        octavo.quantize(copy.deepcopy(model), config, quiet=True), test
    )

    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        trainer = train(model, config, tokenizer, out, options)
        if options.stop_at is None:
            rows["trained with rounding"] = octavo.perplexity(trainer.model, test)
            served = octavo.load_quantized(out / "exported")
            rows["the exported checkpoint"] = octavo.perplexity(served, test)
    show(rows, options.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=3, help="of weights")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stop-at", type=int, help="stop after this step, with a checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--out", type=Path, help="folder for checkpoints and for the exported model")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def weights_of(bits: int) -> dict[str, Any]:
    """Return a config of integer weights in blocks of 32, from ranges with the least squared error."""
    weights = {"num_bits": bits, "block_sizes": {-1: 32}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*weight_quantizer",
                "parent_class": "nn.Linear",
                "cfg": weights,
                "enable": True,
            },
            {"quantizer_name": "*lm_head*", "enable": False},
        ],
        "algorithm": "mse",
    }


def train(
    model: torch.nn.Module, config: dict[str, Any], tokenizer: Any, out: Path, options: argparse.Namespace
) -> Trainer:
    callback = octavo.OctavoCallback(
        config,
        weight_scales="lsq",
        schedule=octavo.Schedule(freeze_scales_at=options.steps * 9 // 10),
        export_dir=None if options.stop_at else out / "exported",
        exporter=None if options.stop_at else "compressed_tensors",
        quiet=True,
    )
    arguments = TrainingArguments(
        str(out / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 10,
        logging_steps=max(options.steps // 5, 1),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=samples(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback, StopAt(options.stop_at)],
    )
    trainer.train(resume_from_checkpoint=options.resume)
    return trainer


def samples(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Return the bundled texts, one after the other, cut into pieces of `LENGTH` tokens."""
    lines = (DATA / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [token for line in lines for token in tokenizer(json.loads(line)["text"])["input_ids"]]
    pieces = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return [{"input_ids": piece, "labels": piece.clone()} for piece in pieces]


def show(rows: dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'model':<24} perplexity")
    for name, perplexity in rows.items():
        print(f"{name:<24} {perplexity:.4f}")


if __name__ == "__main__":
    main()
