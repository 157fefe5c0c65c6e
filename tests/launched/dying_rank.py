"""One rank ends with an error while the other waits for it in a collective."""

from __future__ import annotations

import torch
import torch.distributed as dist

from launched.common import joined

with joined() as rank:
    if rank == 1:
        raise SystemExit("rank 1 gave up")
    dist.all_reduce(torch.ones(1))
