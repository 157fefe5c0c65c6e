"""The divergence of logits, against float64 and against itself in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.distillation.kl import kl_divergence
from octavo.core.distillation.top_k import top_k, top_k_divergence
from octavo.core.errors import ShapeError


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def expected(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """T² · Σ w · Σ p (log p − log q), in float64 and in so many words."""
    p = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)
    return temperature**2 * (weights.double() * (p * (p.log() - q.log())).sum(-1)).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(temperature: float, dtype: torch.dtype) -> None:
    student, teacher = logits(0, 2, 5, 11, dtype=dtype).requires_grad_(), logits(1, 2, 5, 11, dtype=dtype)
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(2))
    wanted_student = student.detach().double().requires_grad_()

    found = kl_divergence(student, teacher, temperature, weights)
    wanted = expected(wanted_student, teacher, temperature, weights)
    (found * 3).backward()
    (wanted * 3).backward()

    tight = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found.double(), wanted, rtol=tight, atol=0)
    torch.testing.assert_close(student.grad.double(), wanted_student.grad, rtol=10 * tight, atol=tight)


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
def test_pieces_make_the_whole(chunk: int) -> None:
    student, teacher = logits(0, 10, 7).requires_grad_(), logits(1, 10, 7)
    whole, in_pieces = student.detach().clone().requires_grad_(), student

    first = kl_divergence(whole, teacher)
    second = kl_divergence(in_pieces, teacher, chunk_tokens=chunk)
    first.backward()
    second.backward()

    torch.testing.assert_close(second, first, rtol=1e-6, atol=0)
    assert torch.equal(in_pieces.grad, whole.grad)


def test_no_difference_no_loss() -> None:
    same = logits(0, 4, 9).requires_grad_()

    loss = kl_divergence(same, same.detach())
    loss.backward()

    assert loss.item() == 0
    assert same.grad.abs().max() == 0


def test_a_token_without_weight_may_hold_anything() -> None:
    student, teacher = logits(0, 3, 5), logits(1, 3, 5)
    student[1], teacher[1] = torch.nan, torch.inf
    student.requires_grad_()

    loss = kl_divergence(student, teacher, weights=torch.tensor([0.5, 0.0, 0.5]))
    loss.backward()

    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()


def test_a_teacher_may_rule_tokens_out() -> None:
    student, teacher = logits(0, 2, 5).requires_grad_(), logits(1, 2, 5)
    teacher[:, 3] = -torch.inf

    loss = kl_divergence(student, teacher)

    p = teacher.double().softmax(-1)
    difference = torch.where(p == 0, 0.0, p * (p.log() - student.detach().double().log_softmax(-1)))
    torch.testing.assert_close(loss.double(), difference.sum(-1).mean(), rtol=1e-6, atol=0)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"student's logits have shape \(2, 5\), the teacher's \(2, 6\)"):
        kl_divergence(logits(0, 2, 5), logits(0, 2, 6))


def test_all_tokens_are_top_k() -> None:
    student, teacher = logits(0, 4, 9).requires_grad_(), logits(1, 4, 9)
    again = student.detach().clone().requires_grad_()

    all_of_them = top_k_divergence(student, top_k(teacher, 9, 2.0), 2.0)
    whole = kl_divergence(again, teacher, 2.0)
    all_of_them.backward()
    whole.backward()

    torch.testing.assert_close(all_of_them, whole, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(student.grad, again.grad, rtol=1e-4, atol=1e-7)


def test_the_rest_is_one_token() -> None:
    """Against float64 probabilities of k tokens and the sum of the others, differentiated by torch."""
    student, teacher = logits(0, 4, 9).requires_grad_(), logits(1, 4, 9)
    wanted_student = student.detach().double().requires_grad_()

    found = top_k_divergence(student, top_k(teacher, 3))
    index = teacher.topk(3, -1).indices

    def lumped(values: Tensor) -> Tensor:
        chosen = values.double().softmax(-1).gather(-1, index)
        return torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], -1)

    p, q = lumped(teacher), lumped(wanted_student)
    wanted = (p * (p.log() - q.log())).sum(-1).mean()
    found.backward()
    wanted.backward()

    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(student.grad.double(), wanted_student.grad, rtol=1e-4, atol=1e-7)


def test_memory_is_one_tensor_of_logits() -> None:
    kept = []
    student = logits(0, 64, 100).requires_grad_()

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        kl_divergence(student, logits(1, 64, 100))

    assert sum(kept) == student.nbytes
