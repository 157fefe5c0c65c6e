"""KL divergence and top-1 agreement equal a plain computation over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import octavo
from helpers.evaluation_reference import Logits
from helpers.tiny import VOCABULARY, tiny_llama, token_batches

MASK = (torch.arange(24)[None] < torch.tensor([[24], [7]])).long()
BATCHES = [{"input_ids": ids * MASK, "attention_mask": MASK} for ids in token_batches(2)]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return tiny_llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return octavo.quantize(tiny_llama(num_hidden_layers=1), "NVFP4_DEFAULT_CFG", token_batches(2), quiet=True)


@torch.no_grad()
def predictions(model: nn.Module) -> Iterator[tuple[list[float], int]]:
    """Yield log-probabilities in float64 and the token that follows, for every token that counts."""
    for batch in BATCHES:
        logits = model(**batch).logits.double()
        for row, ids, mask in zip(logits, batch["input_ids"], batch["attention_mask"], strict=True):
            for position in range(int(mask.sum()) - 1):
                probabilities = torch.softmax(row[position], 0)
                yield [math.log(value) for value in probabilities.tolist()], int(ids[position + 1])


def test_every_number_is_that_of_a_plain_computation(model: nn.Module, base: nn.Module) -> None:
    kl, same, losses = [], 0, ([], [])  # type: ignore[var-annotated]
    for (own, target), (reference, _) in zip(predictions(model), predictions(base), strict=True):
        kl.append(sum(math.exp(p) * (p - q) for p, q in zip(reference, own, strict=True)))
        same += own.index(max(own)) == reference.index(max(reference))
        losses[0].append(-own[target])
        losses[1].append(-reference[target])

    found = octavo.compare(model, base, BATCHES)

    assert found.num_tokens == len(kl) == 2 * (23 + 6)
    assert found.kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert found.top1 == same / len(kl)
    assert found.perplexity == pytest.approx(math.exp(sum(losses[0]) / len(kl)), rel=1e-6)
    assert found.reference_perplexity == pytest.approx(math.exp(sum(losses[1]) / len(kl)), rel=1e-6)
    assert found.kl > 0
    assert found.top1 < 1, "the two differ"


def test_both_perplexities_are_those_of_the_models_alone(model: nn.Module, base: nn.Module) -> None:
    found = octavo.compare(model, base, BATCHES)

    assert found.perplexity == octavo.perplexity(model, BATCHES)
    assert found.reference_perplexity == octavo.perplexity(base, BATCHES)


def test_a_model_agrees_with_itself(base: nn.Module) -> None:
    found = octavo.compare(base, base, BATCHES)

    assert (found.kl, found.top1) == (0.0, 1.0)


def test_the_divergence_is_from_the_reference_to_the_model() -> None:
    """KL(reference ‖ model) of a sharp and a flat distribution: the direction shows."""
    sharp, flat = torch.zeros(VOCABULARY, VOCABULARY), torch.zeros(VOCABULARY, VOCABULARY)
    sharp[:, 3] = 5.0
    p = torch.softmax(sharp[0].double(), 0)

    found = octavo.compare(Logits(flat), Logits(sharp), BATCHES)
    other = octavo.compare(Logits(sharp), Logits(flat), BATCHES)

    assert found.kl == pytest.approx(float((p * (p * VOCABULARY).log()).sum()), rel=1e-5)
    assert other.kl == pytest.approx(float(-(p * VOCABULARY).log().mean()), rel=1e-5)
    assert found.kl != pytest.approx(other.kl, rel=0.1)


def test_agreement_counts_only_tokens_under_the_mask() -> None:
    """The two tables agree on token 0, which is the padding, and nowhere else."""
    one, two = torch.zeros(VOCABULARY, VOCABULARY), torch.zeros(VOCABULARY, VOCABULARY)
    one[:, 1], two[1:, 2], two[0, 1] = 1.0, 1.0, 1.0

    assert octavo.compare(Logits(one), Logits(two), BATCHES).top1 == 0.0


def test_batches_may_be_a_generator(model: nn.Module, base: nn.Module) -> None:
    assert octavo.compare(model, base, (batch for batch in BATCHES)) == octavo.compare(model, base, BATCHES)
