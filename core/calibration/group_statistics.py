"""What is known of a group's input in the quantized and in the original model, summed over tokens."""

from __future__ import annotations

import torch
from torch import Tensor


class GroupStatistics:
    """Sums over tokens, and some tokens that are held out of them.

    Args:
        stride: Every how many tokens one is held.

    Attributes:
        num_tokens: Tokens in the sums.
        gram: XᵀX, fp32 [in, in], of the input X in the quantized model; None before any token.
    """

    def __init__(self, stride: int) -> None:
        self.num_tokens = 0
        self.gram: Tensor | None = None
        self._stride = stride
        self._seen = 0
        self._shift: Tensor | None = None  # Xᵀ(X0 − X)
        self._rest: Tensor | None = None  # XᵀR
        self._held: list[tuple[Tensor, Tensor, Tensor | None]] = []  # X, X0, R

    def add(self, x: Tensor, original: Tensor | None = None, rest: Tensor | None = None) -> None:
        """Take in the tokens of a call.

        Args:
            x: [..., in]: the input as the layer multiplies it.
            original: The same in the original model, where that is known.
            rest: fp32 [..., out]: what the sum that the layer's output is part of has lost besides, if there is one.
        """
        rows = x.reshape(-1, x.shape[-1]).float()
        rows0 = None if original is None else original.reshape(rows.shape).float()
        lost = None if rest is None else rest.reshape(len(rows), -1)
        is_held = (
            torch.arange(self._seen + 1, self._seen + len(rows) + 1, device=x.device) % self._stride == 0
        )
        self._seen += len(rows)
        self._held.append(
            (
                rows[is_held],
                rows[is_held] if rows0 is None else rows0[is_held],
                None if lost is None else lost[is_held],
            )
        )
        kept = rows[~is_held].T
        self.num_tokens += kept.shape[1]
        self.gram = _summed(self.gram, kept, rows[~is_held])
        if rows0 is not None:
            self._shift = _summed(self._shift, kept, (rows0 - rows)[~is_held])
        if lost is not None:
            self._rest = _summed(self._rest, kept, lost[~is_held])

    def missing(self, weight: Tensor) -> Tensor | None:
        """Return XᵀD, fp32 [in, out], with D what the output of `weight` on X lacks; None where that is unknown."""
        if self._shift is None:
            return None
        missing = self._shift @ weight.T
        return missing if self._rest is None else missing + self._rest

    def held_error(self, rounded: Tensor, weight: Tensor) -> Tensor:
        """Return the squared error of a rounded weight on the held tokens, over the power of what is wanted; fp32 [].

        Args:
            rounded: fp32 [out, in].
            weight: fp32 [out, in], not rounded: its output on the original input is what is wanted, with what the sum
                has lost.
        """
        error, power = torch.zeros((), device=weight.device), torch.zeros((), device=weight.device)
        for x, original, rest in self._held:
            wanted = original @ weight.T
            power += wanted.square().sum()
            wanted = wanted if rest is None else wanted + rest
            error += (x @ rounded.T - wanted).square().sum()
        return error / power.clamp(min=torch.finfo(torch.float32).tiny)


def _summed(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if total is None else total.addmm_(left, right)
