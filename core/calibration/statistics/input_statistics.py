"""Statistics of one input: sums that merge, over all tokens that calibration shows."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.input_product import InputProduct
from octavo.core.calibration.statistics.held_tokens import HeldTokens
from octavo.core.calibration.statistics.needs import Needs
from octavo.core.calibration.statistics.symmetric_sum import add_upper, copy_upper

SUMS = ("amax", "abs_sum", "abs_mean_sum", "square_sum")  # one number for each channel
_FEW_BATCHES = 4


class InputStatistics:
    """What was seen of one input [..., in].

    Attributes:
        needs: What is gathered; the maxima in any case, and sums where anything is asked for.
        num_tokens: Tokens seen.
        num_batches: Tensors seen that had any.
        amax: fp32 [in]: largest magnitude of each channel.
        abs_sum: fp64 [in]: sum of magnitudes.
        abs_mean_sum: fp64 [in]: sum over batches of the mean magnitude, each rounded to the input's dtype,
            as AWQ's first implementation averages.
        square_sum: fp64 [in]: sum of squares.
        held: A few tokens.
        block_amax_counts: int64 [512]: blocks of 16 channels by their maximum (`solvers/activation_range.py`); 0 where
            that is not gathered.
    """

    def __init__(self, num_channels: int, needs: Needs, device: torch.device | None = None) -> None:
        self.needs = needs
        self.num_tokens = 0
        self.num_batches = 0
        self.amax = torch.zeros(num_channels, device=device)
        self.abs_sum = torch.zeros(num_channels, dtype=torch.float64, device=device)
        self.abs_mean_sum = torch.zeros_like(self.abs_sum)
        self.square_sum = torch.zeros_like(self.abs_sum)
        self.held = HeldTokens(needs.held_tokens)
        self.block_amax_counts = torch.zeros((), dtype=torch.int64, device=device)
        self._gram: Tensor | None = None
        self._is_whole = True  # `_gram` below its diagonal, too
        self._rows: list[Tensor] = []  # the tokens in place of `_gram`: no more than it has rows

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.amax)

    @property
    def largest_rank(self) -> int:
        """The rank that XᵀX has at most: fewer tokens than channels leave directions of which nothing is known."""
        return min(self.num_tokens, self.num_channels)

    def rank_note(self) -> str:
        """Return a sentence for the report where tokens are fewer than channels, else an empty string."""
        if self.largest_rank == self.num_channels:
            return ""
        return (
            f"{self.num_tokens} tokens for {self.num_channels} channels: XᵀX has rank {self.largest_rank} at most, and "
            "damping decides the rest; give more calibration data"
        )

    def add(self, x: Tensor) -> None:
        """Take in `x` [..., in], any float dtype."""
        tokens = x.detach().reshape(-1, x.shape[-1])
        if len(tokens) == 0:
            return
        self.num_tokens += len(tokens)
        self.num_batches += 1
        self.amax = torch.maximum(self.amax, torch.maximum(tokens.amax(0), -tokens.amin(0)).float())
        if not self.needs.any_sum:
            return
        rows = tokens.float()
        # fp32 within a batch: casting all of it first takes longer than the sum.
        abs_sum = rows.abs().sum(0).double()
        self.abs_sum += abs_sum
        self.abs_mean_sum += (abs_sum / len(rows)).to(x.dtype).double()
        self.square_sum += rows.square().sum(0).double()
        self.held.add(tokens)
        if self.needs.block_amax:
            from octavo.core.calibration.solvers.activation_range import block_amax_counts

            self.block_amax_counts = self.block_amax_counts + block_amax_counts(rows)
        if self.needs.gram:
            self._add_rows(rows)

    def narrowed(self, needs: Needs, device: torch.device) -> InputStatistics:
        """Return what a pass with these needs, no greater than its own, would have gathered; on a device."""
        found = InputStatistics(self.num_channels, needs, device)
        found.num_tokens, found.num_batches = self.num_tokens, self.num_batches
        for name in SUMS:
            setattr(found, name, getattr(self, name).to(device))
        found.held = self.held.thinned(needs.held_tokens, device)
        if needs.gram:
            found.set_factors(*self.factors())
        return found

    def factors(self) -> tuple[Tensor | None, list[Tensor]]:
        """Return XᵀX of the first tokens, [in, in] or None for none, and the tokens after these, each [n, in]."""
        if self._gram is not None and not self._is_whole:
            copy_upper(self._gram)
            self._is_whole = True
        return self._gram, self._rows

    def set_factors(self, gram: Tensor | None, rows: list[Tensor]) -> None:
        """Put back what `factors` returned."""
        self._is_whole = True
        device = self.amax.device
        self._gram = None if gram is None else gram.to(device, copy=True)  # it grows in place
        self._rows = [part.to(device) for part in rows]

    def merge(self, other: InputStatistics) -> None:
        """Take in what was seen of another shard of the data; maxima merge exactly, sums to rounding."""
        self.num_tokens += other.num_tokens
        self.num_batches += other.num_batches
        self.amax = torch.maximum(self.amax, other.amax)
        self.abs_sum += other.abs_sum
        self.abs_mean_sum += other.abs_mean_sum
        self.square_sum += other.square_sum
        self.held.merge(other.held)
        self.block_amax_counts = self.block_amax_counts + other.block_amax_counts
        gram, parts = other.factors()
        if gram is not None:
            self._gram = gram.clone() if self._gram is None else self._gram + gram
        for rows in parts:
            self._add_rows(rows)

    def scale_channels(self, factor: Tensor) -> None:
        """Make these the statistics of the input times `factor` [in], positive: what is folded into its maker.

        No tensor changes in place, since others may share them.
        """
        factor = factor.float()
        self.amax = self.amax * factor
        self.abs_sum, self.abs_mean_sum = self.abs_sum * factor, self.abs_mean_sum * factor
        self.square_sum = self.square_sum * factor.square()
        self.held.scale_channels(factor)
        if self._gram is not None:
            self._gram = self._gram * factor * factor[:, None]
        self._rows = [rows * factor for rows in self._rows]
        self.block_amax_counts = torch.zeros_like(
            self.block_amax_counts
        )  # cannot be known without the tokens

    def mean_abs(self) -> Tensor:
        """Return the mean magnitude of each channel over all tokens, fp32 [in]."""
        return (self.abs_sum / max(self.num_tokens, 1)).float()

    def batch_mean_abs(self) -> Tensor:
        """Return the mean over batches of the mean magnitude of each channel, fp32 [in]: AWQ's, of any batch sizes."""
        return (self.abs_mean_sum / max(self.num_batches, 1)).float()

    def mean_square(self) -> Tensor:
        """Return the mean square of each channel, fp32 [in]."""
        return (self.square_sum / max(self.num_tokens, 1)).float()

    def gram(self) -> Tensor:
        """Return XᵀX, fp32 [in, in], over all tokens; of rank `num_tokens` at most."""
        self._fold_rows()
        gram, _ = self.factors()
        return self.amax.new_zeros(self.num_channels, self.num_channels) if gram is None else gram

    def product(self) -> InputProduct:
        """Return XᵀX over all tokens as it is kept: the matrix, or the tokens while these are no more than channels."""
        if self._gram is not None:
            self._fold_rows()
        gram, rows = self.factors()
        return InputProduct(gram, tuple(rows))

    def _add_rows(self, rows: Tensor) -> None:
        """Keep rows while they take no more memory than XᵀX does: experts that see few tokens need no more.

        Not where a few such batches fill it: what is freed in parts has no room for the next input's XᵀX.
        """
        num_kept = sum(map(len, self._rows)) + len(rows)
        fills_soon = not self._rows and _FEW_BATCHES * len(rows) >= self.num_channels
        if self._gram is None and num_kept <= self.num_channels and not fills_soon:
            self._rows.append(rows.clone())  # a view would keep all of the activation, and follow its changes
            return
        self._rows.append(rows)
        self._fold_rows()

    def _fold_rows(self) -> None:
        for rows in self._rows:
            if self._gram is None:
                self._gram = rows.new_zeros(self.num_channels, self.num_channels)
            add_upper(self._gram, rows)
            self._is_whole = False
        self._rows = []
