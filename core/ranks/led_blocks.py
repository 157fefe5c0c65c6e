"""The blocks of a model that is divided among ranks: rank 0 works on them, and the others help it to gather each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from octavo.core.errors import ExportError, UnsupportedError
from octavo.core.model.blocks import Block, InMemoryBlocks
from octavo.core.model.description import ModelDescription
from octavo.core.model.export_report import ExportReport
from octavo.core.model.sharded import is_sharded, reshard, whole_shape
from octavo.core.modules import tensor_quantizers
from octavo.core.ranks.gathered import gathered_parameters, holder_of
from octavo.core.ranks.world import rank, said_by_first

_END = -1


class LedBlocks(InMemoryBlocks):
    """The blocks of a divided model, for rank 0: while one is worked on, the other ranks gather it, too.

    Its parameters have, outside of their block, shape and dtype alone (they are on the meta device).

    Args:
        model: The model.
        description: As of `InMemoryBlocks`.
        divided: Its divided parameters, by name.
    """

    def __init__(
        self, model: nn.Module, description: ModelDescription | None, divided: dict[str, nn.Parameter]
    ) -> None:
        super().__init__(model, description)
        self._divided = divided

    @contextmanager
    def materialized(self, block: Block) -> Iterator[nn.Module]:
        """Return a context in which the block's tensors have their values; its value is the module."""
        if rank() == 0:
            _broadcast(self._number(block), self._divided)
        with gathered_parameters(self._model, {n: p for n, p in self._divided.items() if n in block.tensors}):
            yield block.module

    def follow(self) -> None:
        """Gather, on another rank than 0, the blocks that rank 0 works on, until it ends."""
        blocks = list(self.blocks())
        while (number := _broadcast(_END, self._divided)) != _END:
            with self.materialized(blocks[number]):
                pass

    def end(self) -> None:
        """Let the other ranks go on."""
        _broadcast(_END, self._divided)

    def _number(self, block: Block) -> int:
        return next(number for number, other in enumerate(self.blocks()) if other.name == block.name)


def led_by_first(
    model: nn.Module, description: ModelDescription | None, write: Callable[[InMemoryBlocks], ExportReport]
) -> ExportReport:
    """Let rank 0 write a checkpoint of a divided model, block by block, with the help of all; every rank calls it.

    Returns:
        What `write` returns, on every rank.

    Raises:
        UnsupportedError: the model has factors on inputs, which are folded into weights.
        ExportError: on other ranks than 0, where its work failed; there its own error is raised.
    """
    _check_unsmoothed(model)
    reshard(model)
    device = next(model.parameters()).device
    with _placeholders(model) as divided:
        blocks = LedBlocks(model, description, divided)
        if rank() != 0:
            blocks.follow()
            return _told(said_by_first("", device))
        text = ""
        try:
            report = write(blocks)
            text = json.dumps({**asdict(report), "directory": str(report.directory)})
        finally:
            blocks.end()
            said_by_first(text, device)
        return report


@contextmanager
def _placeholders(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Show divided parameters, for the time of a context, as whole ones without values; yield the parameters."""
    everything = model.named_parameters(remove_duplicate=False)
    divided = {name: one for name, one in everything if is_sharded(one)}
    shown = {id(one): _placeholder(one) for one in divided.values()}
    try:
        for name, one in divided.items():
            holder, own = holder_of(model, name)
            holder._parameters[own] = shown[id(one)]
        yield divided
    finally:
        for name, one in divided.items():
            holder, own = holder_of(model, name)
            holder._parameters[own] = one


def _placeholder(parameter: nn.Parameter) -> nn.Parameter:
    empty = torch.empty(whole_shape(parameter), dtype=parameter.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False)


def _check_unsmoothed(model: nn.Module) -> None:
    smoothed = [name for name, one in tensor_quantizers(model) if one.pre_quant_scale is not None]
    if smoothed:
        raise UnsupportedError(
            f"{smoothed[0]} has a factor on its input, which is folded into weights that are divided among ranks here; "
            "save the training, load it into a model in one process, and export that"
        )


def _broadcast(number: int, divided: dict[str, nn.Parameter]) -> int:
    """Return the number that rank 0 gives."""
    message = torch.tensor([number], device=next(iter(divided.values())).device)
    dist.broadcast(message, 0)
    return int(message)


def _told(text: str) -> ExportReport:
    if not text:
        raise ExportError("rank 0 could not write the checkpoint; its message says why")
    fields: dict[str, Any] = json.loads(text)
    lists = {name: tuple(fields[name]) for name in ("warnings", "differences")}
    return ExportReport(**{**fields, **lists, "directory": Path(fields["directory"])})
