"""KL divergence between next-token distributions, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from octavo.core.errors import ShapeError

CHUNK_TOKENS = 1024

# (the student's log probabilities, first token, last token) -> (each token's divergence, what it should have predicted)
Targets = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Return T² · KL(teacher ‖ student) of softened distributions (Hinton et al., arXiv:1503.02531), in nats.

    Gradients reach the student only. Of all intermediate values, one tensor like the student's logits is kept.

    Args:
        student: Logits [..., vocabulary], any float dtype.
        teacher: Logits of the same shape.
        temperature: T, by which both are divided.
        weights: fp32 [...], of each token; None weighs all alike, and their sum is then 1.
        chunk_tokens: Tokens whose probabilities are in memory at once, in fp32.

    Returns:
        A scalar: the weighted sum over tokens, in fp32 (float64 for float64).

    Raises:
        ShapeError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "distillation of logits needs one vocabulary and the same tokens"
        )
    rows = teacher.reshape(-1, teacher.shape[-1])

    def targets(log_student: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        log_targets = softened(rows[first:last], temperature, log_student.dtype)
        probabilities = log_targets.exp()
        # 0 · log 0 is 0: a teacher may rule tokens out by logits of −inf.
        difference = log_targets.sub_(log_student).masked_fill_(probabilities == 0, 0.0)
        return difference.mul_(probabilities).sum(-1), probabilities

    return divergence_from(student, targets, temperature, weights, chunk_tokens)


def softened(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Return log probabilities of `logits` [tokens, vocabulary] divided by `temperature`, a tensor of their own."""
    divided = logits.to(dtype)
    return torch.log_softmax(divided if temperature == 1 else divided / temperature, -1)


def divergence_from(
    student: Tensor, targets: Targets, temperature: float, weights: Tensor | None, chunk_tokens: int
) -> Tensor:
    """Return the weighted sum of T² times the divergence of each token, with its gradient; see `kl_divergence`."""
    tokens = student.shape[:-1]
    if weights is None:
        weights = torch.full(tokens, 1 / max(tokens.numel(), 1), device=student.device)
    return cast(Tensor, _Divergence.apply(student, targets, temperature, weights, chunk_tokens))  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    """The gradient of a softmax is known beside its value, so that it is made at once, and nothing else is kept."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, targets: Targets, temperature: float, weights: Tensor, chunk: int
    ) -> Tensor:
        rows = student.detach().reshape(-1, student.shape[-1])
        dtype = torch.promote_types(student.dtype, torch.float32)
        per_token = weights.reshape(-1).to(dtype)
        total = torch.zeros((), dtype=dtype, device=student.device)
        grad = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for first in range(0, len(rows), chunk):
            last = min(first + chunk, len(rows))
            log_student = softened(rows[first:last], temperature, dtype)
            divergence, target = targets(log_student, first, last)
            share = per_token[first:last]
            # A token without weight counts for nothing, whatever its logits are.
            total += torch.where(share == 0, 0.0, divergence * share).sum() * temperature**2
            if grad is not None:
                slope = log_student.exp_().sub_(target).mul_((share * temperature).unsqueeze(-1))
                grad[first:last] = slope.masked_fill_((share == 0).unsqueeze(-1), 0.0)
        ctx.save_for_backward(None if grad is None else grad.reshape(student.shape))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0]).to(slope.dtype), None, None, None, None
