"""The stock Trainer on the bundled model and its texts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import octavo

LENGTH = 32


def model_of(stories: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(stories)
    return model


@cache
def samples(stories: Path, number: int = 48) -> list[dict[str, Tensor]]:
    """Return stretches of the bundled calibration text."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    text = (stories.parent / "calibration.jsonl").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text)["input_ids"][: number * LENGTH]).view(number, LENGTH)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def make_trainer(
    stories: Path, folder: Path, *callbacks: TrainerCallback, steps: int = 4, **arguments: Any
) -> Trainer:
    """Return a Trainer of a fresh model; `model` and `optimizers` among `arguments` are the Trainer's own."""
    own = {name: arguments.pop(name) for name in ("model", "model_init", "optimizers") if name in arguments}
    data = samples(stories)
    options = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **arguments,
    }
    if not own.keys() & {"model", "model_init"}:
        own["model"] = model_of(stories)
    return Trainer(
        args=TrainingArguments(str(folder), **options),
        train_dataset=data[:40],
        eval_dataset=data[40:],
        callbacks=list(callbacks),
        **own,
    )


def callback(config: Any = "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", **options: Any) -> octavo.OctavoCallback:
    """Return a quiet callback; the default preset in blocks of 32, which fit the model."""
    if config == "INT4_BLOCKWISE_WEIGHT_ONLY_CFG":
        config = octavo.with_block_size(config, 32)
    return octavo.OctavoCallback(config, quiet=True, **{"calibration": 2, **options})
