"""InputProduct: XᵀX of a layer's input, as the matrix or as the tokens that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.core.calibration.solvers.objective import diagonal_blocks, gram_error


@dataclass(frozen=True, eq=False)
class InputProduct:
    """What is known of an input X [tokens, in]: enough for the error of a layer's output.

    The matrix has in² numbers, and an error costs in² products for each row of a weight; tokens have tokens · in
    numbers, and cost as many. So that is taken which is less.

    Attributes:
        gram: XᵀX, fp32 [in, in]; None where the tokens are kept instead.
        tokens: Parts of X, fp32 [n, in] each; unused beside a `gram`.
        factor: fp32 [in], what the channels are multiplied with; None for X as it is.
    """

    gram: Tensor | None = None
    tokens: Sequence[Tensor] = ()
    factor: Tensor | None = None

    def scaled(self, factor: Tensor) -> InputProduct:
        """Return the product of the input whose channels are multiplied by `factor` [in], too."""
        factor = factor.float()
        return replace(self, factor=factor if self.factor is None else self.factor * factor)

    def errors(self, change: Tensor) -> Tensor:
        """Return ‖X · changeᵀ‖² of each row, fp32 [rows].

        Args:
            change: fp32 [rows, in], new weights minus old ones.
        """
        if self.factor is not None:
            change = change * self.factor
        if self.gram is not None:
            return gram_error(change, self.gram)
        found = change.new_zeros(len(change))
        for part in self.tokens:
            found += (part @ change.T).square_().sum(0)
        return found

    def blocks(self, length: int) -> Tensor:
        """Return the square blocks on the diagonal, fp32 [⌈in / length⌉, length, length], padded with zeros."""
        if self.gram is not None:
            found = diagonal_blocks(self.gram, length)
        else:
            found = torch.stack([_blocks_of_tokens(part, length) for part in self.tokens]).sum(0)
        if self.factor is None:
            return found
        factor = _padded(self.factor[None], length).reshape(-1, length)
        return found * factor[:, :, None] * factor[:, None, :]


def _blocks_of_tokens(tokens: Tensor, length: int) -> Tensor:
    columns = _padded(tokens, length).reshape(len(tokens), -1, length).permute(1, 2, 0)
    return columns @ columns.mT


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % length))
