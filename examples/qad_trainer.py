"""Let a quantized model learn from its original (QAD), in the stock Trainer: one argument, then a checkpoint.

Run: python examples/qad_trainer.py [--steps 150] [--written 256] [--bits 3] [--out DIR] [--json]
The bundled model in blocks of 32 weights, rounded as well as can be without training, then distilled on the bundled
texts and on others that the original writes; perplexity of other texts, and KL divergence to the original, before and
after.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
LENGTH = 128


def main() -> None:
    options = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    test = octavo.text_batches(tokenizer, DATA / "test.jsonl", num_samples=32, sequence_length=128)
    texts = samples(tokenizer)

    original = AutoModelForCausalLM.from_pretrained(MODEL)
    student = octavo.quantize(
        copy.deepcopy(original), weights_of(options.bits), calibration(texts), quiet=True
    )
    rows = {"rounded": octavo.compare(student, original, test)}

    distill(student, original, texts + written(original, options.written), options.steps)
    rows["distilled"] = octavo.compare(student, original, test)

    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)) / "exported"
        octavo.plugins().exporter("compressed_tensors").export(student, out, quiet=True)
        rows["the exported checkpoint"] = octavo.compare(octavo.load_quantized(out), original, test)
    show(rows, options.json)


def distill(student: torch.nn.Module, original: torch.nn.Module, texts: list[Any], steps: int) -> None:
    """Train the student on what the original says of each token."""
    distillation = octavo.distill(student, teacher=original)
    with tempfile.TemporaryDirectory() as checkpoints:
        arguments = TrainingArguments(
            checkpoints,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            logging_steps=max(steps // 5, 1),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(student, arguments, train_dataset=texts, compute_loss_func=distillation.loss).train()
    octavo.export_student(student)


def weights_of(bits: int) -> dict[str, Any]:
    """Return a config of integer weights in blocks of 32, each layer making good what those before it lost."""
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
        "algorithm": "compensate",
    }


def samples(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Return the bundled texts, one after the other, cut into pieces of `LENGTH` tokens."""
    lines = (DATA / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [token for line in lines for token in tokenizer(json.loads(line)["text"])["input_ids"]]
    pieces = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return as_samples(pieces)


def written(original: Any, number: int) -> list[dict[str, torch.Tensor]]:
    """Return texts that the original writes, of `LENGTH` tokens each."""
    torch.manual_seed(0)
    first = torch.full((number, 1), original.config.bos_token_id)
    pieces = original.generate(
        first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        top_k=0,
        min_length=LENGTH,
        max_length=LENGTH,
        pad_token_id=original.config.eos_token_id,
    )
    return as_samples(pieces)


def as_samples(pieces: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": piece, "labels": piece.clone()} for piece in pieces]


def calibration(texts: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    return list(torch.stack([text["input_ids"] for text in texts]).split(8))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=3, help="of weights")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--written", type=int, default=256, help="texts that the original writes")
    parser.add_argument("--out", type=Path, help="folder for the exported model")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def show(rows: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: asdict(row) for name, row in rows.items()}))
        return
    print(f"{'model':<24} perplexity  KL")
    print(f"{'original':<24} {rows['rounded'].reference_perplexity:<11.4f} 0")
    for name, row in rows.items():
        print(f"{name:<24} {row.perplexity:<11.4f} {row.kl:.4f}")


if __name__ == "__main__":
    main()
