"""Needs: which statistics of their inputs algorithms ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What the one pass over the data must gather for each distinct input of quantized weights.

    Attributes:
        channels: Largest, mean and mean squared magnitude of each channel.
        gram: XᵀX, [in, in].
        held_tokens: How many tokens to hold for judging candidates, at most.
        all_experts: Show every calibration token to every expert; outputs stay those of the chosen ones.
        original_inputs: Block by block, also what each block reads in the model before it was quantized. The
            algorithm runs `CalibratedBlock.original` then, before it changes the block.
    """

    channels: bool = False
    gram: bool = False
    held_tokens: int = 0
    all_experts: bool = False
    original_inputs: bool = False

    @property
    def any_input(self) -> bool:
        """Whether inputs are looked at beyond what their own quantizers need."""
        return self.channels or self.gram or self.held_tokens > 0

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.channels or other.channels,
            self.gram or other.gram,
            max(self.held_tokens, other.held_tokens),
            self.all_experts or other.all_experts,
            self.original_inputs or other.original_inputs,
        )


NOTHING = Needs()
