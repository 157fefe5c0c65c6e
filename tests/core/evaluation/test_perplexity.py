"""Perplexity equals a plain computation, token by token, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo
from helpers.evaluation_reference import CASES, Logits, padded, plain_perplexity, random_table
from helpers.tiny import VOCABULARY, tiny_llama, token_batches
from octavo.core.errors import ConfigError


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_decoders_perplexity_is_that_of_a_plain_computation(case: str, dtype: torch.dtype) -> None:
    model = tiny_llama(dtype, num_hidden_layers=1)

    assert octavo.perplexity(model, CASES[case]) == pytest.approx(
        plain_perplexity(model, CASES[case]), rel=1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_models_may_return_plain_tensors(case: str) -> None:
    model = Logits(random_table())

    assert octavo.perplexity(model, CASES[case]) == pytest.approx(
        plain_perplexity(model, CASES[case]), rel=1e-6
    )


def test_padding_on_the_left_predicts_nothing() -> None:
    """As tokenizers of decoders pad; `the first of each sample` is not predicted."""
    ids = token_batches(1)[0]
    model = Logits(random_table())
    left = [padded(ids.flip(1), [24, 9], "left")]

    assert octavo.perplexity(model, left) == pytest.approx(plain_perplexity(model, left), rel=1e-6)


def test_what_is_under_padding_does_not_matter() -> None:
    batch = padded(token_batches(1)[0], [20, 9])
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 13)}
    model = Logits(random_table())

    assert octavo.perplexity(model, [batch]) == octavo.perplexity(model, [other])


def test_tokens_count_equally_however_they_are_batched() -> None:
    ids = token_batches(1)[0]
    model = Logits(random_table())

    together = octavo.perplexity(model, [{"input_ids": ids}])
    apart = octavo.perplexity(model, [{"input_ids": row[None]} for row in ids])

    assert together == pytest.approx(apart, rel=1e-6)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    model = Logits(torch.zeros(VOCABULARY, VOCABULARY))

    assert octavo.perplexity(model, CASES["padded"]) == pytest.approx(VOCABULARY, rel=1e-6)


def test_a_trained_model_predicts_its_own_kind_of_text(stories: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories)
    ids = AutoTokenizer.from_pretrained(stories)(
        "Once upon a time, there was a little girl", return_tensors="pt"
    )
    batch = {"input_ids": ids["input_ids"]}

    found = octavo.perplexity(model, [batch])

    assert found == pytest.approx(plain_perplexity(model, [batch]), rel=1e-6)
    assert found < 8


def test_a_tensor_is_a_batch_of_input_ids() -> None:
    model, ids = tiny_llama(), token_batches()[0]

    assert octavo.perplexity(model, [ids]) == octavo.perplexity(model, [{"input_ids": ids}])
    assert octavo.compare(model, model, [ids]).kl == 0


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ("Once upon a time", "found str; octavo.text_batches makes"),
        ({"tokens": torch.ones(1, 2)}, r"found dict of \['tokens'\]"),
        (torch.ones(4, dtype=torch.int64), r"input_ids must be \[batch, tokens\], found shape \(4,\)"),
    ],
)
def test_other_batches_are_refused(batch: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        octavo.perplexity(tiny_llama(), [batch])
