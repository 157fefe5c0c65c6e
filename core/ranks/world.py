"""The ranks that this process is one of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def num_ranks() -> int:
    """Return how many processes have joined; 1 where none have."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 where it is alone."""
    return dist.get_rank() if num_ranks() > 1 else 0


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if num_ranks() > 1:
        dist.barrier()


def largest_of_all(tensor: Tensor) -> Tensor:
    """Return the elementwise largest of all ranks' tensors, which have one shape; also in place.

    Where there are several, NaN counts as infinite: not every backend of `torch.distributed` would let it through.
    """
    if num_ranks() > 1:
        if tensor.is_floating_point():
            tensor.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def sum_of_all(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, which have one shape; also in place."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def said_by_first(text: str, device: torch.device) -> str:
    """Return on every rank the text that rank 0 gives.

    Args:
        text: Of rank 0; the others' is not looked at.
        device: Whose tensors the backend carries.
    """
    if num_ranks() == 1:
        return text
    data = text.encode()
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, 0)
    values = list(data) if rank() == 0 else [0] * int(length)
    buffer = torch.tensor(values, dtype=torch.uint8, device=device)
    dist.broadcast(buffer, 0)
    return bytes(buffer.tolist()).decode()
