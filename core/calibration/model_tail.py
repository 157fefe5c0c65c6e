"""ModelTail: what follows a model's last block, up to the logits, run on given hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from octavo.core.model.blocks import CapturedCall


class ModelTail(nn.Module):
    """A model that goes from its embeddings straight to its last block, or to what follows that.

    Norm, head and whatever else stands there are the model's own; nothing about its family is known here.

    Args:
        model: The model.
        blocks: Its blocks, in the order they run.

    Attributes:
        calls: The model's arguments in each call that was recorded.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.calls: list[CapturedCall] = []
        self._blocks = list(blocks)
        self._returned: dict[nn.Module, Any] = {}
        self._leads_to_logits = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the model's arguments, and the form of what blocks return, for the time of a context."""
        hooks = [block.register_forward_hook(self._see_block) for block in self._blocks]
        hooks.append(self.model.register_forward_hook(self._see_model, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def leads_to_logits(self, num_calls: int) -> bool:
        """Whether each of so many calls of the blocks was one of the model, which returned logits of every token."""
        return self._leads_to_logits and len(self.calls) == num_calls

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits, with `hidden` as what the last block reads.

        Args:
            hidden: [..., hidden].
            args: The model's arguments, which may decide how the last block attends.
            kwargs: The same by name.
        """
        *before, last = self._blocks
        with self._skipping(before), _reading(last, hidden):
            return cast(Tensor, logits_of(self.model(*args, **kwargs)))

    @torch.no_grad()
    def after_blocks(self, hidden: Tensor, call: CapturedCall) -> Tensor:
        """Return the logits, with `hidden` as what the last block returns."""
        last = self._blocks[-1]
        with self._skipping(self._blocks), _reading(last, hidden):
            return cast(Tensor, logits_of(self.model(*call.args, **call.kwargs)))

    @contextmanager
    def _skipping(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Let blocks return what they read, in the form in which they return their outputs."""
        own = [(block, vars(block).get("forward")) for block in blocks]
        try:
            for block in blocks:
                vars(block)["forward"] = _passing(self._returned[block])
            yield
        finally:
            for block, forward in own:
                if forward is None:
                    del vars(block)["forward"]
                else:
                    vars(block)["forward"] = forward

    def _see_block(self, block: nn.Module, _: Any, output: Any) -> None:
        self._returned[block] = len(output) if isinstance(output, (tuple, list)) else None

    def _see_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        given = {name: without_cache(value) for name, value in kwargs.items()}
        self.calls.append(CapturedCall(tuple(map(without_cache, args)), given))
        found = logits_of(output)
        self._leads_to_logits &= isinstance(found, Tensor) and found.dim() == 3


def logits_of(output: Any) -> Any:
    """Return the logits among what a model returns; None where there are none."""
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


def without_cache(value: Any) -> Any:
    """Return an argument as it is kept. A cache of keys is not: the block runs several times and would fill it up."""
    return None if type(value).__name__.endswith("Cache") else value


def _passing(length: int | None) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if length is None else (hidden, *[None] * (length - 1))

    return forward


@contextmanager
def _reading(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Let a block read these hidden states, whatever it is called with."""

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with block.register_forward_pre_hook(read, with_kwargs=True):
        yield
