"""Train a model with its quantizers on in the stock Trainer, divided among processes by DeepSpeed's ZeRO-3.

Run: torchrun --nproc-per-node 2 examples/zero3_qat.py [--steps 60] [--bits 3] [--out DIR] [--json]
The bundled model in blocks of 32 weights, whose scales follow the weights. Stopped by --stop-at STEP and run again with
the same --out, it goes on from its last checkpoint and exports the bytes of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import get_last_checkpoint

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
LENGTH = 64
ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,  # divide the small weights of this model, too
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "torch_adam": True},
    },  # torch's: nothing to compile
}


class StopAt(TrainerCallback):
    """End the run after a step, as an interruption does, with a checkpoint."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for a checkpoint, and for no further step."""
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Measure(TrainerCallback):
    """Measure the model before the first step, rounded, and after the last; every process does."""

    def __init__(self, test: Any) -> None:
        self.test = test
        self.rows: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure what calibration gave."""
        if state.global_step == 0:
            self.rows["rounded, not trained"] = octavo.perplexity(model, self.test)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure what training gave."""
        self.rows["trained with rounding"] = octavo.perplexity(model, self.test)


def main() -> None:
    options = parse_arguments()
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # compiles for minutes; gloo does without
        )
    rows = run(options)
    if dist.get_rank() == 0:
        show(rows, options.json)
    dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=3, help="of weights")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--stop-at", type=int, help="stop after this step, with a checkpoint")
    parser.add_argument(
        "--out", type=Path, default=Path("zero3_qat"), help="checkpoints and the exported model"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    test = octavo.text_batches(tokenizer, DATA / "test.jsonl", num_samples=32, sequence_length=128)
    rows = {"original": octavo.perplexity(AutoModelForCausalLM.from_pretrained(MODEL), test)}

    checkpoints, exported = options.out / "checkpoints", options.out / "exported"
    # Before the model, which is divided while it is loaded.
    arguments = training_arguments(checkpoints, options.steps, options.save_every)
    callback = octavo.OctavoCallback(
        weights_of(options.bits),
        weight_scales="recomputed",
        export_dir=None if options.stop_at else exported,
        exporter=None if options.stop_at else "compressed_tensors",
        quiet=True,
    )
    measure = Measure(test)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL),
        args=arguments,
        train_dataset=samples(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback, measure, StopAt(options.stop_at)],
    )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=last)
    rows |= measure.rows
    if options.stop_at is None and dist.get_rank() == 0:
        unset_hf_deepspeed_config()  # this process reads the checkpoint alone
        rows["the exported checkpoint"] = octavo.perplexity(octavo.load_quantized(exported), test)
    dist.barrier()
    return rows


def training_arguments(folder: Path, steps: int, save_every: int) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        deepspeed=ZERO3,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=max(steps // 5, 1),
        save_steps=save_every,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def weights_of(bits: int) -> dict[str, Any]:
    """Return a config of integer weights in blocks of 32, whose scales are those of the largest magnitudes."""
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
        "algorithm": "max",
    }


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
