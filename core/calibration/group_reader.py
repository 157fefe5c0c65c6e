"""GroupReader: what layers that read one tensor see in a call of their block, and what their output is added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.block_calls import CalibratedBlock
from octavo.core.calibration.collectors import Ignore, attached
from octavo.core.calibration.residual_sums import BLOCK_OUTPUT, first_tensor
from octavo.core.calibration.weight_problem import WeightProblem
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import Collector, TensorQuantizer


class _Enough(Exception):  # noqa: N818 (no error: it ends a call whose rest nobody looks at)
    pass


class GroupReader:
    """Looks at one group of layers while their block runs.

    Args:
        problems: Weights that are multiplied with the same tensor.
        sum_reader: The module inside the block that reads the sum which the output of the one layer is part of, as
            `residual_sums` finds it; None without one.

    Attributes:
        problems: The weights.
        inputs: What they read in the present call, [..., in] in the order seen; an expert may see several tensors.
        rest: fp32 [..., out]: the sum without the layer's output; None without one.
    """

    def __init__(self, problems: Sequence[WeightProblem], sum_reader: str | None = None) -> None:
        self.problems = list(problems)
        self.inputs: list[Tensor] = []
        self.rest: Tensor | None = None
        self._sum_reader = sum_reader
        self._output: Tensor | None = None
        self._stops = False

    @property
    def writes_to_sum(self) -> bool:
        """Whether there is a `rest` to see."""
        return self._sum_reader is not None

    @property
    def quantizer(self) -> TensorQuantizer:
        """The first of the input's quantizers."""
        problem = self.problems[0]
        return problem.layer.quantizers()[problem.slot.inputs].stages()[0]

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take the tensor that the layers read."""
        self.inputs.append(x.detach())
        if self._stops and self._sum_reader is None:
            raise _Enough

    @contextmanager
    def watching(self, block: nn.Module, stops: bool) -> Iterator[None]:
        """Look at the layer's output and the sum for the time of a context.

        Args:
            block: The block.
            stops: End each call once all was seen.
        """
        self._stops = stops
        handles = []
        if self._sum_reader is not None:
            handles.append(self.problems[0].layer.register_forward_hook(self._see_output))
        if self._sum_reader:
            reader = block.get_submodule(self._sum_reader)
            handles.append(reader.register_forward_pre_hook(self._see_sum, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start_call(self) -> None:
        """Forget the last call."""
        self.inputs, self.rest, self._output = [], None, None

    def end_call(self, output: Tensor) -> None:
        """Look at what the block returned."""
        if self._sum_reader == BLOCK_OUTPUT:
            self._take_rest(output)

    def _see_output(self, _: nn.Module, __: Any, output: Tensor) -> None:
        if self._output is None:
            self._output = output.detach().clone()

    def _see_sum(self, _: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        found = first_tensor(args, kwargs)
        if self._output is not None and self.rest is None and found is not None:
            self._take_rest(found)
            if self._stops:
                raise _Enough

    def _take_rest(self, total: Tensor) -> None:
        if self._output is not None:
            self.rest = total.float().reshape(self._output.shape) - self._output.float()


class _InOrder:
    """A reader, and a note of when it was first reached."""

    def __init__(self, reader: GroupReader, order: dict[GroupReader, None]) -> None:
        self._reader, self._order = reader, order

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Hand `x` on."""
        self._order.setdefault(self._reader)
        self._reader.collect(quantizer, x)


@torch.no_grad()
def read_calls(
    block: CalibratedBlock,
    inputs: ActivationStore,
    readers: Sequence[GroupReader],
    see: Callable[[int, Tensor | None], None],
    *,
    silent: Sequence[TensorQuantizer],
    stops: bool = False,
) -> list[GroupReader]:
    """Run a block on all its calls and look at groups of layers.

    Args:
        block: The block.
        inputs: What it reads in each call.
        readers: What to look at.
        see: Called after each call with its number and what the block returned; None where the call was ended.
        silent: Quantizers that round nothing; all others do.
        stops: End each call once all readers (one, then) have seen what there is to see.

    Returns:
        The readers whose layers ran, in the order they were first reached.
    """
    order: dict[GroupReader, None] = {}
    collectors: dict[TensorQuantizer, Collector] = dict.fromkeys(silent, Ignore())
    collectors.update((reader.quantizer, _InOrder(reader, order)) for reader in readers)
    with ExitStack() as contexts:
        contexts.enter_context(attached(collectors))
        for reader in readers:
            contexts.enter_context(reader.watching(block.module, stops))
        for index, hidden in enumerate(inputs):
            for reader in readers:
                reader.start_call()
            see(index, _output(block, index, hidden, readers))
    return list(order)


def quantizers_of(block: CalibratedBlock) -> list[TensorQuantizer]:
    """Return every quantizer inside a block."""
    return [quantizer for _, quantizer in tensor_quantizers(block.module)]


def _output(
    block: CalibratedBlock, index: int, hidden: Tensor, readers: Sequence[GroupReader]
) -> Tensor | None:
    try:
        output = block.run(index, hidden)
    except _Enough:
        return None
    for reader in readers:
        reader.end_call(output)
    return output
