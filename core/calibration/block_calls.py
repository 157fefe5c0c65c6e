"""The calls of a model's blocks: what each one reads, kept while the blocks are calibrated one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.model_tail import ModelTail, without_cache
from octavo.core.errors import UnsupportedError
from octavo.core.model.blocks import CapturedCall

_HIDDEN = "hidden_states"


@dataclass
class BlockCalls:
    """The arguments of each call of each block, without what flows from block to block.

    Attributes:
        hidden: What the first block reads in each call, [..., hidden].
        others: {block: its other arguments in each call}; tensors that blocks share (masks) are kept once.
    """

    hidden: ActivationStore
    others: dict[str, list[_Arguments]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Arguments:
    """Positional arguments after the first, keyword arguments, and the keyword that hidden states came by, if any."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: str | None

    def with_hidden(self, hidden: Tensor) -> CapturedCall:
        """Return all arguments, with these hidden states."""
        if self.keyword is None:
            return CapturedCall((hidden, *self.args), dict(self.kwargs))
        return CapturedCall(self.args, {**self.kwargs, self.keyword: hidden})


@dataclass(frozen=True)
class Stream:
    """What a block reads in each call, and what it returns for that.

    Attributes:
        inputs: What it reads.
        outputs: What it returns; filled by who runs the block.
    """

    inputs: ActivationStore
    outputs: ActivationStore


@dataclass(frozen=True)
class CalibratedBlock:
    """One block under calibration.

    Attributes:
        name: Its name in the model.
        module: The block.
        inputs: What it reads in each call: outputs of the quantized blocks before it.
        targets: What it returned for that before it was quantized; filled by `run_all`.
        arguments: Its other arguments in each call.
        original: The same in the model before it was quantized, where an algorithm asks for it (`Needs`): that
            algorithm fills its outputs.
        tail: What follows it in the model, where it is the last block and leads to logits.
    """

    name: str
    module: nn.Module
    inputs: ActivationStore
    targets: ActivationStore
    arguments: Sequence[_Arguments]
    original: Stream | None = None
    tail: ModelTail | None = None

    def run_all(self) -> None:
        """Run the block on all inputs and keep what it returns as targets; those of a first run stay."""
        run_block(self.module, self.inputs, self.arguments, None if self.targets else self.targets)

    def run(self, index: int, hidden: Tensor) -> Tensor:
        """Return the block's output for `hidden`, with the other arguments of call `index`."""
        return _call(self.module, hidden, self.arguments[index])

    def call(self, index: int) -> CapturedCall:
        """Return all arguments of call `index`."""
        return self.arguments[index].with_hidden(self.inputs[index])


def capture_calls(
    blocks: Mapping[str, nn.Module], run: Callable[[], None], hidden: ActivationStore
) -> BlockCalls:
    """Run the data and keep what the blocks are called with.

    Args:
        blocks: The blocks by name, in the order they run.
        run: Runs the data through the model.
        hidden: An empty store for what the first block reads.

    Raises:
        UnsupportedError: a block reads something else than what the one before it returned, so that the blocks
            cannot be calibrated one after the other.
    """
    calls = BlockCalls(hidden, {name: [] for name in blocks})
    last: list[Tensor] = []
    handles = []
    for position, (name, block) in enumerate(blocks.items()):
        handles.append(
            block.register_forward_pre_hook(_reader(name, position, calls, last), with_kwargs=True)
        )
        handles.append(block.register_forward_hook(_writer(last)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def run_block(
    block: nn.Module,
    inputs: ActivationStore,
    arguments: Sequence[_Arguments],
    outputs: ActivationStore | None,
) -> None:
    """Run a block on all inputs, and keep what it returns in `outputs`, if any."""
    with torch.no_grad():
        for hidden, other in zip(inputs, arguments, strict=True):
            output = _call(block, hidden, other)
            if outputs is not None:
                outputs.append(output)


def _call(block: nn.Module, hidden: Tensor, other: _Arguments) -> Tensor:
    call = other.with_hidden(hidden)
    return _hidden_of(block(*call.args, **call.kwargs))


def _reader(name: str, position: int, calls: BlockCalls, last: list[Tensor]) -> Callable[..., None]:
    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_name = not args
        hidden = kwargs.get(_HIDDEN) if by_name else args[0]
        if not isinstance(hidden, Tensor):
            raise UnsupportedError(
                f"block {name} is called without hidden states; calibrate this model whole"
            )
        if position == 0:
            calls.hidden.append(hidden.detach())
        elif not last or hidden is not last[0]:
            raise UnsupportedError(
                f"block {name} reads another tensor than the block before it returned, so blocks cannot be calibrated "
                "one after the other; calibrate this model whole (leave out 'layerwise')"
            )
        rest = {
            key: without_cache(value) for key, value in kwargs.items() if not (by_name and key == _HIDDEN)
        }
        others = tuple(map(without_cache, args[1:]))
        calls.others[name].append(_Arguments(others, rest, _HIDDEN if by_name else None))

    return read


def _writer(last: list[Tensor]) -> Callable[..., None]:
    def write(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        last[:] = [_hidden_of(output)]

    return write


def _hidden_of(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found
