"""Text that ranks tell each other, as tensors of bytes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def to_bytes(text: str, device: torch.device) -> Tensor:
    """Return a text as uint8 [bytes of its UTF-8]."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)


def to_text(tensor: Tensor) -> str:
    """Undo `to_bytes`."""
    return bytes(tensor.cpu().tolist()).decode()


def of_all_ranks(text: str, device: torch.device) -> list[str]:
    """Return every rank's text; all ranks of the run call this together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [text]
    own, ranks = to_bytes(text, device), dist.get_world_size()
    lengths = torch.zeros(ranks, dtype=torch.int64, device=device)
    lengths[dist.get_rank()] = len(own)
    dist.all_reduce(lengths)
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(found, padded)
    return [to_text(tensor[: int(length)]) for tensor, length in zip(found, lengths, strict=True)]
