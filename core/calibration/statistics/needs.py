"""Needs: which statistics of their inputs algorithms ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the one pass over the data must gather for each distinct input of quantized weights.

    Attributes:
        maxima: Largest magnitude of each channel.
        channels: Largest, mean and mean squared magnitude of each channel.
        gram: XᵀX, [in, in].
        block_amax: How often the maxima of blocks of 16 channels fall into which range.
        held_tokens: How many tokens to hold for judging candidates, at most.
        all_experts: Show every calibration token to every expert; outputs stay those of the chosen ones.
        original_inputs: Block by block, also what each block reads in the model before it was quantized. The
            algorithm runs `CalibratedBlock.original` then, before it changes the block.
    """

    maxima: bool = False
    channels: bool = False
    gram: bool = False
    held_tokens: int = 0
    all_experts: bool = False
    original_inputs: bool = False
    block_amax: bool = False

    @property
    def any_input(self) -> bool:
        """Whether inputs are looked at beyond what their own quantizers need."""
        return self.maxima or self.any_sum

    @property
    def any_sum(self) -> bool:
        """Whether more than maxima is gathered."""
        return self.channels or self.gram or self.held_tokens > 0 or self.block_amax

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            maxima=self.maxima or other.maxima,
            channels=self.channels or other.channels,
            gram=self.gram or other.gram,
            held_tokens=max(self.held_tokens, other.held_tokens),
            all_experts=self.all_experts or other.all_experts,
            original_inputs=self.original_inputs or other.original_inputs,
            block_amax=self.block_amax or other.block_amax,
        )


NOTHING = Needs()
