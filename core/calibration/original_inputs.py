"""What the layers of a block read in the model before it was quantized, and the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.group_reader import GroupReader, quantizers_of, read_calls


class OriginalInputs:
    """Inputs of one group of layers in each call of the original block.

    They are kept where the group reads one tensor in each call, with a row for every token that the block reads: only
    then does the same row stand for the same token when the model is quantized. Experts read other tokens then.

    Args:
        reader: Looks at the group.
        limit: Bytes that are kept in memory, at most.

    Attributes:
        reader: As given.
        is_kept: Whether `inputs` is complete.
        inputs: [..., in] for each call.
        rests: fp32 [..., out] for each call: what the layer's output is added to; None without such a sum.
    """

    def __init__(self, reader: GroupReader, limit: int) -> None:
        self.reader = reader
        self.is_kept = True
        self.inputs = ActivationStore(limit)
        self.rests = ActivationStore(limit) if reader.writes_to_sum else None

    def add_call(self, num_tokens: int) -> None:
        """Take in what the reader saw in a call of `num_tokens` tokens."""
        seen = self.reader.inputs
        if len(seen) != 1 or seen[0].numel() != num_tokens * seen[0].shape[-1]:
            self.is_kept, self.inputs, self.rests = False, ActivationStore(0), None
        if not self.is_kept:
            return
        self.inputs.append(seen[0])
        if self.rests is None or self.reader.rest is None:
            self.rests = None
        else:
            self.rests.append(self.reader.rest)


def run_original(block: CalibratedBlock, readers: Sequence[GroupReader]) -> list[OriginalInputs]:
    """Run a block that is not quantized yet on what it reads in the original model; keep what it returns, too.

    Args:
        block: A block with `original` inputs.
        readers: Groups of layers.

    Returns:
        What each group reads, in the order in which they run; without those that no token reached.
    """
    assert block.original is not None  # noqa: S101 (the algorithm's needs asked for it)
    original = block.original
    limit = original.inputs.limit // max(2 * len(readers), 1)  # for `inputs` and `rests`
    found = {reader: OriginalInputs(reader, limit) for reader in readers}
    is_first = not original.outputs

    def see(index: int, output: Tensor | None) -> None:
        hidden = original.inputs[index]
        for group in found.values():
            group.add_call(hidden.numel() // hidden.shape[-1])
        if output is not None and is_first:
            original.outputs.append(output)

    order = read_calls(block, original.inputs, readers, see, silent=quantizers_of(block))
    return [found[reader] for reader in order]
