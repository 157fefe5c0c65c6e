"""The largest logits of a teacher: what is kept of them on disk, and the divergence from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.distillation.kl import CHUNK_TOKENS, divergence_from
from octavo.core.errors import ShapeError


class TopK(NamedTuple):
    """The k most probable next tokens of each position, and how probable all others are together.

    Attributes:
        tokens: int32 [..., k].
        log_probability: fp32 [..., k], natural logarithm, of softened distributions.
        log_rest: fp32 [...]: of all other tokens together; −inf where there are none.
    """

    tokens: Tensor
    log_probability: Tensor
    log_rest: Tensor


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Return the `k` largest of `logits` [..., vocabulary], softened by `temperature`."""
    log_probabilities = torch.log_softmax(logits.float() / temperature, -1)
    largest, index = log_probabilities.topk(min(k, logits.shape[-1]), -1)
    rest = log_probabilities.scatter(-1, index, -torch.inf)
    return TopK(index.int(), largest, torch.logsumexp(rest, -1))


def top_k_divergence(
    student: Tensor,
    teacher: TopK,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Return T² · KL(teacher ‖ student) where all tokens beyond the teacher's k are one; as `kl_divergence`.

    Within those, the student's own proportions are left as they are: no gradient but to their sum.

    Raises:
        ShapeError: the teacher's tokens are others in number.
    """
    if student.shape[:-1] != teacher.log_rest.shape:
        raise ShapeError(
            f"the student's logits are of tokens {tuple(student.shape[:-1])}, the teacher's largest ones of "
            f"{tuple(teacher.log_rest.shape)}"
        )
    k = teacher.tokens.shape[-1]
    index, known = teacher.tokens.reshape(-1, k).long(), teacher.log_probability.reshape(-1, k)
    log_rest = teacher.log_rest.reshape(-1)

    def targets(log_student: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        chosen, log_known = index[first:last], known[first:last].to(log_student.dtype)
        log_other = log_rest[first:last].to(log_student.dtype)
        log_student_rest = torch.logsumexp(log_student.scatter(-1, chosen, -torch.inf), -1)
        divergence = (log_known.exp() * (log_known - log_student.gather(-1, chosen))).sum(-1)
        rest = log_other.exp() * (log_other - log_student_rest)
        divergence = divergence + torch.where(log_other == -torch.inf, 0.0, rest)
        share = (log_student + (log_other - log_student_rest).unsqueeze(-1)).exp()
        share = torch.where(log_other.unsqueeze(-1) == -torch.inf, 0.0, share)
        return divergence, share.scatter(-1, chosen, log_known.exp())

    return divergence_from(student, targets, temperature, weights, chunk_tokens)
