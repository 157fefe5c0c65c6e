"""ReconstructionTask: what `reconstruct` runs for one block, and what that shall return."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.call_slices import CallSlice, Lazy, slices
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.model.blocks import CapturedCall


class ReconstructionTask:
    """A block on what the quantized blocks before it return, and what it returned in the original model.

    Args:
        block: The block, with `original` inputs and outputs.
        batch_size: Sequences in a batch.
        tail: The way from the block to the logits; None where its own output is compared.

    Attributes:
        module: What is run.
        batch_size: Calls in a batch. Calls of more sequences are cut.
    """

    def __init__(self, block: CalibratedBlock, batch_size: int, tail: ModelTail | None) -> None:
        assert block.original is not None  # noqa: S101 (the algorithm's needs asked for it)
        self.module: nn.Module = block.module if tail is None else tail
        self._block, self._tail, self._outputs = block, tail, block.original.outputs
        self._parts = slices(block.inputs, batch_size)
        self.batch_size = max(1, batch_size // max(part.num_sequences for part in self._parts))

    def name_of(self, problem: WeightProblem) -> str:
        """Return the name of a parameter in `module`."""
        if self._tail is not None:
            return f"model.{problem.name}"
        return problem.name.removeprefix(f"{self._block.name}.")

    def calls(self) -> Sequence[CapturedCall]:
        """Return the arguments of `module`."""
        return Lazy(len(self._parts), lambda index: self._call(self._parts[index]))

    def targets(self) -> Sequence[Tensor]:
        """Return what the original model had there."""
        return Lazy(len(self._parts), lambda index: self._target(self._parts[index]))

    def _call(self, part: CallSlice) -> CapturedCall:
        if self._tail is None:
            return part.of_call(self._block.call(part.call))
        call = part.of_call(self._tail.calls[part.call])
        return CapturedCall((part.of(self._block.inputs[part.call]), *call.args), call.kwargs)

    def _target(self, part: CallSlice) -> Tensor:
        hidden = part.of(self._outputs[part.call])
        if self._tail is None:
            return hidden
        with collecting(self._tail.model, {}):  # nothing is rounded
            return self._tail.after_blocks(hidden, part.of_call(self._tail.calls[part.call]))
