"""Captured calls cut into parts of a few sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from torch import Tensor

from octavo.core.model.blocks import CapturedCall

T = TypeVar("T")


@dataclass(frozen=True)
class CallSlice:
    """Some sequences of one call.

    Attributes:
        call: Which call.
        rows: Which sequences; None for all, also where they cannot be told from tokens.
        num_rows: How many sequences the call has.
        num_sequences: How many there are here.
    """

    call: int
    rows: slice | None
    num_rows: int
    num_sequences: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return these sequences of a tensor [sequences, ...]."""
        return tensor if self.rows is None else tensor[self.rows]

    def of_call(self, call: CapturedCall) -> CapturedCall:
        """Return the call with these sequences alone."""
        args = tuple(self._of_any(value) for value in call.args)
        return CapturedCall(args, {name: self._of_any(value) for name, value in call.kwargs.items()})

    def _of_any(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # A vector belongs to tokens (positions), and what has one row serves all sequences.
            return self.of(value) if value.dim() > 1 and len(value) == self.num_rows else value
        if isinstance(value, (tuple, list)):
            return type(value)([self._of_any(part) for part in value])
        return value


def slices(hidden: Iterable[Tensor], size: int) -> list[CallSlice]:
    """Return slices of at most `size` sequences that make up all calls.

    Args:
        hidden: What the block reads in each call, [sequences, tokens, hidden] or [tokens, hidden].
        size: Sequences in a slice.
    """
    found = []
    for index, tensor in enumerate(hidden):
        rows = len(tensor) if tensor.dim() > 2 else 1
        if rows <= size or rows == tensor.shape[1]:
            found.append(CallSlice(index, None, rows, rows))
        else:
            starts = range(0, rows, size)
            found += [CallSlice(index, slice(i, i + size), rows, min(size, rows - i)) for i in starts]
    return found


class Lazy(Sequence[T], Generic[T]):
    """Items that are made when they are asked for, each time anew.

    Args:
        num_items: How many.
        make: Makes one.
    """

    def __init__(self, num_items: int, make: Callable[[int], T]) -> None:
        self._num_items, self._make = num_items, make

    def __len__(self) -> int:
        return self._num_items

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num_items))]
        if not -self._num_items <= index < self._num_items:
            raise IndexError(index)
        return self._make(index % self._num_items)
