"""What ranks tell each other beside tensors: JSON, as bytes in tensors."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def communication_device() -> torch.device:
    """Return the device on which the default process group takes tensors."""
    is_nccl = "nccl" in str(dist.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")


def of_all_ranks(value: Any) -> list[Any]:
    """Return what every rank calls this with, JSON-ready, by rank. All ranks call it."""
    own = _encoded(value)
    length = torch.tensor([len(own)], device=own.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(one) for one in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=own.device)
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return [_decoded(one[: int(size)]) for one, size in zip(found, lengths, strict=True)]


def from_first_rank(value: Any = None) -> Any:
    """Return what rank 0 calls this with, JSON-ready. All ranks call it."""
    own = _encoded(value)
    length = torch.tensor([len(own)], device=own.device)
    dist.broadcast(length, 0)
    if dist.get_rank() != 0:
        own = torch.empty(int(length), dtype=torch.uint8, device=own.device)
    dist.broadcast(own, 0)
    return _decoded(own)


def _encoded(value: Any) -> Tensor:
    data = bytearray(json.dumps(value).encode())
    return torch.frombuffer(data, dtype=torch.uint8).to(communication_device())


def _decoded(data: Tensor) -> Any:
    return json.loads(data.cpu().numpy().tobytes().decode())
