"""Quantize a BERT classifier to INT8 and FP8: accuracy before and after, the checkpoint, and the model read back.

Run: python examples/bert.py [OUT_DIR] [--steps N] [--json]

The task: which of two sentences of a story comes first? No trained BERT is bundled, so a tiny one is trained here, in
half a minute, on stories of `data/calibration.jsonl`, of which the last 8 choose when to stop; those of
`data/test.jsonl` are looked at once. Guessing is right in half of the cases, and the stories are made text, often in
no order (data/SOURCE.md).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

import octavo

DATA = Path(__file__).parent / "data"
CLS, SEP, PAD = 1, 2, 0
SENTENCE_LENGTH = 28  # tokens
VALIDATION_STORIES, CHECK_EVERY = 8, 20
CONFIGS = {"INT8": octavo.INT8_DEFAULT_CFG, "FP8": octavo.FP8_DEFAULT_CFG}

Story = list[list[int]]  # token numbers of each sentence


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences of one story each, as BERT reads them: label 1 where the first comes first.

    Attributes:
        inputs: Arguments of the model, int64 [n, tokens].
        labels: int64 [n].
    """

    inputs: dict[str, Tensor]
    labels: Tensor


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("out", type=Path, nargs="?", help="keep the checkpoints here")
    arguments.add_argument("--steps", type=int, default=140, help="training steps at most")
    arguments.add_argument("--json", action="store_true", help="print rows as JSON")
    options = arguments.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(DATA / "stories260k")
    stories, test = (stories_of(tokenizer, DATA / f"{name}.jsonl") for name in ("calibration", "test"))
    train = stories[:-VALIDATION_STORIES]
    base = trained(train, draw_pairs(stories[-VALIDATION_STORIES:], 256, seed=1), options.steps)
    calibration, unseen = draw_pairs(train, 128, seed=2), draw_pairs(test, 512, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        rows = [run(name, base, calibration, unseen, out / name.lower()) for name in CONFIGS]
    print(json.dumps(rows, indent=2) if options.json else "\n".join(report(rows, len(unseen.labels))))
    different = [row["format"] for row in rows if not row["read_back_equal"]]
    if different:
        sys.exit(f"logits of the model read back differ from the finalized one's for {', '.join(different)}")


def stories_of(tokenizer: PreTrainedTokenizerBase, file: Path) -> list[Story]:
    """Return the tokens of each story's sentences; the last one is cut off and left out."""
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    split = [re.split(r"(?<=[.!?])\s+", text)[:-1] for text in texts]
    encoded = [
        [tokenizer(sentence, add_special_tokens=False).input_ids[:SENTENCE_LENGTH] for sentence in sentences]
        for sentences in split
    ]
    return [story for story in encoded if len(story) > 1]


def draw_pairs(stories: list[Story], num_pairs: int, seed: int) -> Pairs:
    """Return pairs of any two sentences of a story, in the story's order or swapped."""
    rng, rows, labels = random.Random(seed), [], []
    for _ in range(num_pairs):
        story, label = rng.choice(stories), rng.randrange(2)
        earlier, later = sorted(rng.sample(range(len(story)), 2))
        first, second = (earlier, later) if label else (later, earlier)
        rows.append(([CLS, *story[first], SEP], story[second]))
        labels.append(label)
    length = max(len(first) + len(second) for first, second in rows)
    padding = [length - len(first) - len(second) for first, second in rows]
    columns: dict[str, list[list[int]]] = {
        "input_ids": [a + b + [PAD] * n for (a, b), n in zip(rows, padding, strict=True)],
        "token_type_ids": [[0] * len(a) + [1] * (length - len(a)) for a, _ in rows],
        "attention_mask": [[1] * (length - n) + [0] * n for n in padding],
    }
    return Pairs({name: torch.tensor(column) for name, column in columns.items()}, torch.tensor(labels))


def trained(stories: list[Story], validation: Pairs, steps: int) -> nn.Module:
    """Train a BERT of two blocks and return it as it was when it was best on the validation pairs."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(vocab_size=512, max_position_embeddings=64, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    best, best_accuracy = model, 0.0
    for step in range(1, steps + 1):
        model.train()
        pairs = draw_pairs(stories, 32, seed=1000 + step)
        loss = model(**pairs.inputs, labels=pairs.labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == steps:
            found = accuracy(logits(model.eval(), validation), validation)
            if found > best_accuracy:
                best, best_accuracy = copy.deepcopy(model), found
    return best.eval()


def run(name: str, base: nn.Module, calibration: Pairs, test: Pairs, out: Path) -> dict[str, Any]:
    """Quantize a copy, export it, read it back, and measure all three on the test pairs."""
    batches = [
        dict(zip(calibration.inputs, rows, strict=True))
        for rows in zip(*(column.split(32) for column in calibration.inputs.values()), strict=True)
    ]
    model = octavo.quantize(copy.deepcopy(base), CONFIGS[name], batches, quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=out, quiet=True)
    with octavo.finalized(model, "unified_hf"):  # with the rounding of the checkpoint's dialect
        finalized = logits(model, test)
    served = logits(octavo.load_quantized(out), test)
    expected = logits(base, test)
    return {
        "format": name,
        "accuracy_base": accuracy(expected, test),
        "accuracy": accuracy(served, test),
        "changed": int((served.argmax(1) != expected.argmax(1)).sum()),
        "read_back_equal": torch.equal(served, finalized),
        "pairs": len(test.labels),
        "megabytes": (out / "model.safetensors").stat().st_size / 1e6,
    }


@torch.no_grad()
def logits(model: nn.Module, pairs: Pairs) -> Tensor:
    """Return fp32 [n, 2]."""
    result: Tensor = model(**pairs.inputs).logits
    return result


def accuracy(found: Tensor, pairs: Pairs) -> float:
    return float((found.argmax(1) == pairs.labels).double().mean())


def report(rows: list[dict[str, Any]], num_pairs: int) -> list[str]:
    lines = [
        f"{row['format']:6} {row['accuracy_base']:7.2%} {row['accuracy']:10.2%} {row['changed']:16} "
        f"{row['megabytes']:7.2f}   {row['read_back_equal']}"
        for row in rows
    ]
    return [
        f"{num_pairs} test pairs",
        "format   float  quantized  changed answers      MB   read back equal",
        *lines,
    ]


if __name__ == "__main__":
    main()
