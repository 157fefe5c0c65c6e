"""Distillation: the loss between a student and its teacher, in a loop of your own or in a Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from octavo.core.distillation.config import DistillConfig
from octavo.core.distillation.hidden import Outputs, hidden_loss
from octavo.core.distillation.kl import kl_divergence
from octavo.core.distillation.teacher_logits import TeacherLogits
from octavo.core.distillation.top_k import top_k_divergence
from octavo.core.errors import ConfigError, ModeError

IGNORED = -100  # label of a token that does not count


class Distillation:
    """The loss of a student beside its teacher, which sees the same inputs.

    Attributes:
        config: Which losses.
        teacher: The teacher, or the logits that it left.
        parts: {name of a loss: its newest value, before weights}, as floats for logs.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | TeacherLogits, config: DistillConfig) -> None:
        self.config, self.teacher = config, teacher
        self.parts: dict[str, Tensor] = {}
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
        pairs = [pair for loss in config.hidden for pair in loss.layers.items()]
        self._student_outputs = Outputs(student, [ours for ours, _ in pairs], "student")
        self._teacher_outputs: Outputs | None = None
        try:
            if isinstance(teacher, TeacherLogits):
                _check_recorded(teacher, config)
            else:
                self._teacher_outputs = Outputs(teacher, [theirs for _, theirs in pairs], "teacher")
        except ConfigError:
            self._student_outputs.close()
            raise
        self._handle = student.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, student: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._arguments = arguments, named

    def loss(self, outputs: Any, labels: Tensor | None = None, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of what the student just returned; a Trainer's `compute_loss_func`.

        While gradients are off, as in a Trainer's evaluation, it is that of the labels alone, so that it stays
        comparable.

        Args:
            outputs: What the student returned: logits [..., tokens, vocabulary], or an object with `logits`.
            labels: int64 [..., tokens] as transformers takes them: the tokens themselves, −100 where one does not
                count. None: tokens count where `attention_mask` is not 0.
            num_items_in_batch: By what to divide the sum over tokens, as a Trainer that accumulates gradients says;
                None: their number.

        Returns:
            A scalar, fp32.

        Raises:
            ModeError: the student did not run since the last call.
            ConfigError: labels are needed and missing.
            ShapeError: vocabularies or widths of student and teacher differ.
        """
        if self._arguments is None:
            raise ModeError("distillation: the student did not run since the last loss; call it first")
        (arguments, named), self._arguments = self._arguments, None
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if not torch.is_grad_enabled() and labels is not None:
            return _cross_entropy(logits, labels, num_items_in_batch)
        weights = _weights(logits, labels, named, num_items_in_batch)
        losses = list(self._losses(logits, labels, weights, arguments, named, num_items_in_batch))
        self.parts = {name: value.detach() for name, _, value in losses}
        self._student_outputs.forget()
        return self._balanced(losses)

    def close(self) -> None:
        """Take every hook off the student and the teacher."""
        self._handle.remove()
        self._student_outputs.close()
        if self._teacher_outputs is not None:
            self._teacher_outputs.close()

    def _losses(
        self,
        logits: Tensor,
        labels: Tensor | None,
        weights: Tensor,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
        num_items: Any,
    ) -> Any:
        config = self.config
        teacher_logits = self._teacher_logits(arguments, named)
        if config.logits_weight:
            options = (config.temperature, weights, config.chunk_tokens)
            if isinstance(teacher_logits, Tensor):
                yield "logits", config.logits_weight, kl_divergence(logits, teacher_logits, *options)
            else:
                yield "logits", config.logits_weight, top_k_divergence(logits, teacher_logits, *options)
        for number, loss in enumerate(config.hidden):
            assert self._teacher_outputs is not None  # noqa: S101 (checked before)
            value = hidden_loss(loss, self._student_outputs.last, self._teacher_outputs.last)
            yield f"hidden{number}", loss.weight, value
        if self._teacher_outputs is not None:
            self._teacher_outputs.forget()
        if config.labels_weight:
            if labels is None:
                raise ConfigError("distillation: labels_weight needs labels, found none")
            yield "labels", config.labels_weight, _cross_entropy(logits, labels, num_items)

    def _teacher_logits(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        if isinstance(self.teacher, TeacherLogits):
            return self.teacher.of(named.get("input_ids", arguments[0] if arguments else None))
        if not (self.config.logits_weight or self.config.hidden):
            return None
        if self.teacher.training:
            self.teacher.eval()
        with torch.no_grad():
            outputs = self.teacher(*arguments, **named)
        return outputs if isinstance(outputs, Tensor) else outputs.logits

    def _balanced(self, losses: list[tuple[str, float, Tensor]]) -> Tensor:
        if self.config.balance == "match":
            size = losses[0][2].detach().abs()
            tiny = torch.finfo(size.dtype).tiny
            losses = [(n, w, v * (size / v.detach().abs().clamp_min(tiny))) for n, w, v in losses]
        return torch.stack([weight * value for _, weight, value in losses]).sum()


def _check_recorded(teacher: TeacherLogits, config: DistillConfig) -> None:
    if config.hidden:
        raise ConfigError("distillation: hidden losses need a teacher that runs, found recorded logits")
    if teacher.temperature != config.temperature:
        raise ConfigError(
            f"distillation: the teacher's logits in {teacher.directory} were recorded with temperature "
            f"{teacher.temperature}, found {config.temperature}; record them again or take theirs"
        )


def _weights(logits: Tensor, labels: Tensor | None, named: Mapping[str, Any], num_items: Any) -> Tensor:
    """Return the weight of each position: those that predict a token that counts, summing to one."""
    tokens = logits.shape[:-1]
    counts = torch.ones(tokens, device=logits.device)
    mask = named.get("attention_mask")
    if labels is not None:
        counts[..., -1] = 0
        counts[..., :-1] = (labels[..., 1:] != IGNORED).to(counts.dtype)
    elif isinstance(mask, Tensor) and mask.shape == tokens:
        counts = mask.to(counts.dtype)
    return counts / (counts.sum().clamp_min(1) if num_items is None else num_items)


def _cross_entropy(logits: Tensor, labels: Tensor, num_items: Any) -> Tensor:
    shifted = labels[..., 1:].reshape(-1)
    rows = logits[..., :-1, :].reshape(-1, logits.shape[-1])
    total = cross_entropy(rows.float(), shifted.to(rows.device), ignore_index=IGNORED, reduction="sum")
    count = (shifted != IGNORED).sum().clamp_min(1).to(total.device) if num_items is None else num_items
    return total / count
