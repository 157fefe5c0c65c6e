"""Where a layer's output is added to the residual stream, found by watching a block, not by knowing its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.block_calls import CalibratedBlock

BLOCK_OUTPUT = ""


@torch.no_grad()
def residual_sums(block: CalibratedBlock, layers: Sequence[str]) -> dict[str, str]:
    """Return which of `layers` write to a sum by plain addition, and who reads the sum.

    A tensor is such a sum where it is not the layer's output itself, and changes by exactly what is added to that
    output: a norm or a factor in between, as Gemma 2 and Granite have, does not pass. This takes one call of the block,
    and one more for each layer; it is run as it is now.

    Args:
        block: A block with at least one call.
        layers: Names of layers inside the block whose outputs are as wide as what it reads.

    Returns:
        {layer: the module inside the block that reads the sum first, or `BLOCK_OUTPUT`}.
    """
    hidden = block.inputs[0]
    plain, outputs = _watch(block, hidden, layers, {})
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, output in outputs.items():
        size = max(float(output.float().std()), float(hidden.float().std()))
        change = torch.randn(output.shape, generator=generator).to(output) * size
        changed, _ = _watch(block, hidden, layers, {name: change})
        for reader, value in plain.items():
            if value.numel() == output.numel() and reader in changed:
                values = (part.reshape(output.shape) for part in (value, changed[reader]))
                if _is_sum(output, change, *values):
                    found[name] = reader
                    break
    return found


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor among a call's arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _is_sum(output: Tensor, change: Tensor, plain: Tensor, changed: Tensor) -> bool:
    """Whether `plain` is `output` plus something else, so that `change` came through as it is."""
    allowed = 8 * torch.finfo(output.dtype).eps
    output, change, plain, changed = (x.float() for x in (output, change, plain, changed))
    if (
        allowed * plain.std() > change.std() / 4
    ):  # the change would be lost in rounding, so that nothing could be seen
        return False
    margin = allowed * (plain.abs() + change.abs() + plain.std() + change.std())

    def are_near(one: Tensor, other: Tensor) -> bool:
        return bool(((one - other).abs() <= margin).all())

    return are_near(changed - plain, change) and not are_near(plain, output)


def _watch(
    block: CalibratedBlock, hidden: Tensor, layers: Sequence[str], changes: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the first call with `changes` added to layers' outputs.

    Returns:
        (what each module reads, in the order of calls, and what the block returns; what `layers` return).
    """
    read: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def reads(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_tensor(args, kwargs)
        if name and name not in read and tensor is not None and tensor.shape[-1:] == hidden.shape[-1:]:
            read[name] = tensor.clone()  # models may add to it in place

    def returns(name: str, output: Tensor) -> Tensor:
        outputs.setdefault(name, output.clone())
        return output + changes[name] if name in changes else output

    with ExitStack() as hooks:
        for name, module in block.module.named_modules():
            hooks.enter_context(_hook(module, reads=lambda a, k, name=name: reads(name, a, k)))
        for name in layers:
            module = block.module.get_submodule(name)
            hooks.enter_context(_hook(module, returns=lambda output, name=name: returns(name, output)))
        read[BLOCK_OUTPUT] = block.run(0, hidden)
    return read, outputs


@contextmanager
def _hook(module: nn.Module, reads: Any = None, returns: Any = None) -> Iterator[None]:
    handles = []
    if reads is not None:
        handles.append(module.register_forward_pre_hook(lambda _, a, k: reads(a, k), with_kwargs=True))
    if returns is not None:
        handles.append(module.register_forward_hook(lambda _, __, output: returns(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
