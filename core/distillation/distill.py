"""`distill` and `export_student`: a model that learns from its original, and the model alone again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from octavo.core.distillation.config import DistillConfig, distill_config
from octavo.core.distillation.distillation import Distillation
from octavo.core.distillation.mode import ATTRIBUTE, DISTILL
from octavo.core.distillation.teacher import original_of
from octavo.core.distillation.teacher_logits import TeacherLogits
from octavo.core.errors import ModeError
from octavo.core.modes.record import history, last_record, set_history
from octavo.core.modes.transaction import applying


def distill(
    model: nn.Module,
    config: DistillConfig | Mapping[str, Any] | None = None,
    teacher: nn.Module | TeacherLogits | None = None,
) -> Distillation:
    """Let `model` learn from a teacher; its structure stays, and the mode `distill` is recorded.

    In a loop of your own: ``loss = distillation.loss(model(**batch))``. In a stock Trainer:
    ``Trainer(model, …, compute_loss_func=distillation.loss)``. Call it before the optimizer is made, when it is
    decided which parameters train.

    Args:
        model: The student, as a rule quantized and calibrated (quantization-aware distillation).
        config: Fields of `DistillConfig`; None: the divergence of logits at temperature 1.
        teacher: A model that takes the same inputs, put into evaluation mode; or logits that it left. None: what
            `model` was quantized from, which shares with it every parameter that does not train.

    Returns:
        What computes the loss.

    Raises:
        ConfigError: the config is wrong, or names a module that does not exist.
        ModeError: `model` is being distilled already; or `teacher` is None, and the original is gone.
    """
    chosen = distill_config(config)
    if ATTRIBUTE in model.__dict__:
        raise ModeError("the model is being distilled already; octavo.export_student ends that")
    if teacher is model:
        raise ModeError(
            "the teacher is the student itself; give a model of its own, or None for the original"
        )
    teacher = original_of(model) if teacher is None else teacher
    with applying(model, DISTILL, chosen.model_dump(mode="json")):
        distillation = Distillation(model, teacher, chosen)
        model.__dict__[ATTRIBUTE] = distillation
    return distillation


def export_student(model: nn.Module) -> nn.Module:
    """End a distillation: take its hooks and its record off, and let go of the teacher.

    Returns:
        `model`, quantized as it is, ready for any exporter.

    Raises:
        ModeError: the model is not being distilled.
    """
    if last_record(model, DISTILL) is None:
        raise ModeError("the model is not being distilled; call octavo.distill first")
    distillation = model.__dict__.pop(ATTRIBUTE, None)
    if distillation is not None:  # a restored model has the record alone
        distillation.close()
    set_history(model, tuple(record for record in history(model) if record.mode != DISTILL))
    return model
