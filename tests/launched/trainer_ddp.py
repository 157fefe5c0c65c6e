"""OctavoCallback in the stock Trainer on two ranks (DDP): resumed, refused, exported."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

import octavo
from helpers.trainers import callback, make_trainer
from launched.common import ARGUMENTS, FOLDER, joined, of_all_ranks, refusal, report

STORIES = Path(ARGUMENTS[0])
SCALES = {"weight_scales": "lsq", "schedule": octavo.Schedule(ramp=2, freeze_scales_at=3)}


def trained(folder: str, resume: str | None = None, **options: Any) -> Any:
    trainer = make_trainer(
        STORIES, FOLDER / folder, callback(**SCALES, **options), steps=4, save_strategy="steps", save_steps=2
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def with_fsdp() -> str:
    """Return what is said where the Trainer is asked for FSDP, which accelerate does on GPUs alone."""
    said = octavo.OctavoCallback("INT8_WEIGHT_ONLY_CFG", calibration=1)
    settings = {
        "fsdp": True,
        "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    }
    with contextlib.redirect_stderr(io.StringIO()) as text:
        make_trainer(STORIES, FOLDER / "fsdp", said, steps=1, **settings).train()
    return text.getvalue()


with joined() as rank:
    whole = trained("whole", export_dir=FOLDER / "exported")
    checkpoint = str(FOLDER / "whole" / "checkpoint-2")
    again = trained("again", checkpoint)
    ours, theirs = whole.model.state_dict(), again.model.state_dict()
    other = callback("INT8_WEIGHT_ONLY_CFG")
    refused = refusal(
        lambda: make_trainer(STORIES, FOLDER / "other", other, steps=3).train(
            resume_from_checkpoint=checkpoint
        )
    )
    first = whole.state.log_history[0]["loss"]
    report(
        different=of_all_ranks([name for name in ours if not torch.equal(ours[name], theirs[name])]),
        ranks=of_all_ranks({name: float(tensor.double().sum()) for name, tensor in ours.items()}),
        wrapper=type(whole.model_wrapped).__name__,
        refused=of_all_ranks(refused),
        fsdp=with_fsdp(),
        loss=first,
    )
