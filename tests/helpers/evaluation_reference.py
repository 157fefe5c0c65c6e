"""Perplexity by a plain computation, models of fixed logits, and padded batches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from helpers.tiny import VOCABULARY, token_batches

Batch = dict[str, Tensor]


class Logits(nn.Module):
    """Returns a plain tensor, of fixed logits looked up by token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table[input_ids]


def random_table(seed: int = 0) -> Tensor:
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


@torch.no_grad()
def plain_perplexity(model: nn.Module, batches: list[Batch]) -> float:
    """Every sample on its own, every token on its own, numbers as Python floats."""
    losses = []
    for batch in batches:
        output: Any = model(**batch)
        logits = (output if isinstance(output, Tensor) else output.logits).double().tolist()
        masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).tolist()
        for row, ids, mask in zip(logits, batch["input_ids"].tolist(), masks, strict=True):
            tokens = [position for position, kept in enumerate(mask) if kept]
            for before, position in pairwise(tokens):
                total = math.log(sum(math.exp(value) for value in row[before]))
                losses.append(total - row[before][ids[position]])
    return math.exp(sum(losses) / len(losses))


def padded(ids: Tensor, lengths: list[int], side: str = "right") -> Batch:
    keep = torch.arange(ids.shape[1])
    rows = [keep < n if side == "right" else keep >= ids.shape[1] - n for n in lengths]
    mask = torch.stack(rows).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


CASES = {
    "plain": [{"input_ids": ids} for ids in token_batches(3)],
    "uneven batches": [{"input_ids": token_batches(1)[0][:1, :5]}, {"input_ids": token_batches(2)[1]}],
    "padded": [padded(ids, [24, 9]) for ids in token_batches(2)],
    "a sample of one token": [padded(token_batches(1)[0], [24, 1])],
}
