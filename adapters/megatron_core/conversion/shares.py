"""Tensors of all ranks, handed to the first one when it asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from octavo.adapters.megatron_core.conversion.messages import (
    communication_device,
    from_first_rank,
    of_all_ranks,
)
from octavo.core.errors import ExportError


@dataclass(frozen=True)
class Share:
    """What a rank says of its part of a tensor.

    Attributes:
        shape: Shape of the part.
        dtype: Its dtype, `bfloat16`.
        rank: Which of the ranks that divide the tensor this one is; 0 where all have all of it.
        ranks: How many these are.
    """

    shape: tuple[int, ...]
    dtype: str
    rank: int = 0
    ranks: int = 1

    @classmethod
    def of(cls, tensor: Tensor, rank: int = 0, ranks: int = 1) -> Share:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), rank, ranks)


class SharedTensors:
    """Every tensor that some rank has. Rank 0 asks for parts; the others answer until it stops.

    Each part travels alone, from one rank that has it: no rank holds more than its own tensors and rank 0 what it
    asked for. All ranks make this object, with what they have.

    Args:
        own: This rank's tensors and what it says of them, by names that are the same on all ranks.
    """

    def __init__(self, own: Mapping[str, tuple[Tensor, Share]]) -> None:
        self._own = {name: tensor for name, (tensor, _) in own.items()}
        said = of_all_ranks({name: asdict(share) for name, (_, share) in own.items()})
        self._holders: dict[str, dict[int, tuple[int, Share]]] = {}
        for holder, shares in enumerate(said):
            for name, fields in shares.items():
                share = Share(**{**fields, "shape": tuple(fields["shape"])})
                self._holders.setdefault(name, {}).setdefault(share.rank, (holder, share))
        self._names = sorted(self._holders)
        self._numbers = {name: number for number, name in enumerate(self._names)}

    def __contains__(self, name: object) -> bool:
        return name in self._holders

    def share(self, name: str) -> Share:
        """Return what is said of a tensor by the first of the ranks that divide it."""
        return next(share for _, share in self._holders[name].values())

    def parts(self, name: str) -> Iterator[tuple[Share, Tensor]]:
        """Yield the parts of a tensor, in the order of the ranks that divide it; on rank 0 only.

        Raises:
            ExportError: no rank has one of them.
        """
        holders = self._holders[name]
        ranks = self.share(name).ranks
        if missing := [rank for rank in range(ranks) if rank not in holders]:
            raise ExportError(
                f"{name} is divided among {ranks} ranks, and none of this run is number {missing[0]}"
            )
        for rank in range(ranks):
            holder, share = holders[rank]
            yield share, self._own[name] if holder == 0 else self._received(name, rank, holder, share)

    def serve(self) -> None:
        """Hand parts to rank 0 until it stops; every other rank calls this.

        Raises:
            ExportError: rank 0 failed; its reason is shown.
        """
        while (asked := from_first_rank())["name"] is not None:
            name = self._names[asked["name"]]
            holder, _ = self._holders[name][asked["rank"]]
            if holder == dist.get_rank():
                dist.send(self._own[name].detach().to(communication_device()).contiguous(), 0)
        if asked["failure"]:
            raise ExportError(f"rank 0 could not write the checkpoint: {asked['failure']}")

    @contextmanager
    def led(self) -> Iterator[None]:
        """Let the other ranks go when the context ends, with the reason if it fails; on rank 0 only."""
        failure = ""
        try:
            yield
        except BaseException as error:
            failure = str(error) or type(error).__name__
            raise
        finally:
            from_first_rank({"name": None, "failure": failure})

    def _received(self, name: str, rank: int, holder: int, share: Share) -> Tensor:
        from_first_rank({"name": self._numbers[name], "rank": rank})
        dtype: Any = getattr(torch, share.dtype)
        part = torch.empty(share.shape, dtype=dtype, device=communication_device())
        dist.recv(part, holder)
        return part
