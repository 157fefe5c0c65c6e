"""Perplexity, KL divergence and top-1 agreement of causal language models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.errors import ConfigError

TokenBatch = Mapping[str, Tensor] | Tensor


@dataclass(frozen=True)
class Comparison:
    """A model against a reference, over the same tokens.

    Attributes:
        num_tokens: Number of predicted tokens.
        perplexity: Of the model.
        reference_perplexity: Of the reference.
        kl: Mean over tokens of KL(reference ‖ model), in nats.
        top1: Share of tokens for which both predict the same next one.
    """

    num_tokens: int
    perplexity: float
    reference_perplexity: float
    kl: float
    top1: float


def perplexity(model: nn.Module, batches: Iterable[TokenBatch]) -> float:
    """Return exp of the mean negative log-likelihood of every token but the first of each sample.

    Args:
        model: Takes a batch as keyword arguments and returns logits [batch, tokens, vocabulary], or an output
            with `logits`.
        batches: `input_ids` [batch, tokens], or dicts with them and optionally `attention_mask`, whose zeros are
            left out: they are not predicted, and nothing is predicted from them. They are moved to the model.

    Returns:
        The perplexity; infinity where it exceeds every float.

    Raises:
        ConfigError: a batch is something else, or there is no token to predict.
    """
    total, count = 0.0, 0
    for batch in map(_named, batches):
        log_probs, keep = _log_probabilities(model, batch)
        total += _negative_log_likelihood(log_probs, keep, batch)
        count += int(keep.sum())
    return _exp(total / _counted(count))


def compare(model: nn.Module, reference: nn.Module, batches: Iterable[TokenBatch]) -> Comparison:
    """Compare `model` with `reference` over the same tokens; batches as in `perplexity`.

    Raises:
        ConfigError: a batch is something else, or there is no token to predict.
    """
    own, other, kl, same, count = 0.0, 0.0, 0.0, 0, 0
    for batch in map(_named, batches):
        log_probs, keep = _log_probabilities(model, batch)
        reference_log_probs = _log_probabilities(reference, batch)[0].to(log_probs.device)
        own += _negative_log_likelihood(log_probs, keep, batch)
        other += _negative_log_likelihood(reference_log_probs, keep, batch)
        divergence = (reference_log_probs.exp() * (reference_log_probs - log_probs)).sum(-1)
        kl += float(divergence[keep].double().sum())
        same += int((log_probs.argmax(-1) == reference_log_probs.argmax(-1))[keep].sum())
        count += int(keep.sum())
    _counted(count)
    return Comparison(count, _exp(own / count), _exp(other / count), kl / count, same / count)


def batches_on(batches: Iterable[TokenBatch], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield the batches moved to `device`."""
    for batch in map(_named, batches):
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def _named(batch: object) -> Mapping[str, Tensor]:
    """Return a batch as keyword arguments of the model."""
    named = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    if not isinstance(named, Mapping) or not isinstance(named.get("input_ids"), Tensor):
        raise ConfigError(
            f"a batch is a tensor of input_ids [batch, tokens] or a dict with them, found {type(batch).__name__}"
            f"{f' of {list(batch)}' if isinstance(batch, Mapping) else ''}; octavo.text_batches makes such batches"
        )
    if named["input_ids"].dim() != 2:
        raise ConfigError(f"input_ids must be [batch, tokens], found shape {tuple(named['input_ids'].shape)}")
    return named


@torch.no_grad()
def _log_probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return fp32 log-probabilities [batch, tokens − 1, vocabulary] and the mask of tokens that count."""
    device = next((parameter.device for parameter in model.parameters()), batch["input_ids"].device)
    (batch,) = batches_on([batch], device)
    output: Any = model(**batch)
    if not isinstance(output, Tensor) and not hasattr(output, "logits"):
        raise ConfigError(
            f"{type(model).__name__} returns {type(output).__name__}, which has no logits; expected a causal language "
            "model with its head"
        )
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    keep = mask[:, :-1].bool() & mask[:, 1:].bool()  # padding on the left predicts nothing
    return torch.log_softmax(logits[:, :-1].float(), dim=-1), keep.to(logits.device)


def _negative_log_likelihood(log_probs: Tensor, keep: Tensor, batch: Mapping[str, Tensor]) -> float:
    targets = batch["input_ids"][:, 1:, None].to(log_probs.device)
    return -float(log_probs.gather(-1, targets)[..., 0][keep].double().sum())


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _counted(count: int) -> int:
    if count == 0:
        raise ConfigError("there is no token to predict: give samples of two tokens or more")
    return count
