"""HeldTokens: a few tokens of an input, evenly spread over all that were seen."""

from __future__ import annotations

import torch
from torch import Tensor


class HeldTokens:
    """Every n-th token; n doubles whenever there are more than `capacity`.

    Which tokens are kept depends on their order alone, so that the same data gives the same choice.

    Attributes:
        capacity: How many are kept at most.
        stride: Every how many-th is kept now.
        seen: How many were seen.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.stride = 1
        self.seen = 0
        self._tokens: list[Tensor] = []

    def add(self, tokens: Tensor) -> None:
        """Take in tokens [n, in]."""
        if self.capacity == 0:
            return
        first = -self.seen % self.stride
        self.seen += len(tokens)
        self._keep(tokens[first :: self.stride].clone())

    def merge(self, other: HeldTokens) -> None:
        """Take in the tokens of another shard of the data, and thin out both."""
        self.stride = max(self.stride, other.stride)
        self.seen += other.seen
        for tokens in other._tokens:
            self._keep(tokens)

    def become(self, other: HeldTokens) -> None:
        """Hold what another one does."""
        self.stride, self.seen, self._tokens = other.stride, other.seen, list(other._tokens)

    def thinned(self, capacity: int, device: torch.device) -> HeldTokens:
        """Return what a smaller capacity would have kept, on a device."""
        found = HeldTokens(capacity)
        if capacity > 0:
            found.restore(self.tokens().to(device), self.stride, self.seen)
        return found

    def restore(self, tokens: Tensor, stride: int, seen: int) -> None:
        """Put back kept tokens [n, in], every `stride`-th of `seen`."""
        self.stride, self.seen = stride, seen
        self._keep(tokens)

    def scale_channels(self, factor: Tensor) -> None:
        """Multiply all tokens by `factor` [in]."""
        self._tokens = [(tokens * factor).to(tokens.dtype) for tokens in self._tokens]

    def tokens(self) -> Tensor:
        """Return the tokens, [n, in] in the dtype they came in."""
        return torch.cat(self._tokens) if self._tokens else torch.empty(0)

    def _keep(self, tokens: Tensor) -> None:
        if len(tokens) == 0:
            return
        self._tokens.append(tokens)
        while sum(map(len, self._tokens)) > self.capacity:
            self.stride *= 2
            self._tokens = [self.tokens()[::2]]
