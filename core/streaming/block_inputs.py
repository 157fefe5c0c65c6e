"""What a model's blocks are called with, found without running one: hidden states pass them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.activation_store import ActivationStore
from octavo.core.calibration.block_calls import BlockCalls, capture_calls
from octavo.core.calibration.forward_loop import ForwardLoop, run_forward_loop
from octavo.core.calibration.model_tail import ModelTail
from octavo.core.errors import FOREIGN_FAILURES, UnsupportedError
from octavo.core.graph.evaluating import evaluating
from octavo.core.graph.nested import tensors_in
from octavo.core.plugins import plugins
from octavo.core.streaming.source_weights import SourceWeights

Passing = Mapping[str, int | None]
"""{block: how many things it returns, hidden states first; None where it returns hidden states alone}."""


@torch.no_grad()
def returned_forms(model: nn.Module, blocks: Mapping[str, nn.Module]) -> Passing:
    """Run a model on the meta device with its smallest inputs, and return what its blocks return.

    Raises:
        UnsupportedError: the model does not run so, or a block returns tensors beside hidden states, which later
            blocks may read.
    """
    inputs = plugins().tiny_inputs(model)
    if inputs is None:
        raise UnsupportedError(
            f"no plugin knows the inputs of {type(model).__name__}, so its blocks cannot be run one by one; quantize "
            "it in memory (leave out --stream)"
        )
    forms: dict[str, int | None] = {}

    def see(name: str) -> Callable[..., None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            is_alone = not isinstance(output, (tuple, list))
            if not is_alone and any(True for _ in tensors_in(list(output[1:]))):
                raise UnsupportedError(
                    f"block {name} returns tensors beside hidden states, which later blocks may read; quantize this "
                    "model in memory (leave out --stream)"
                )
            forms[name] = None if is_alone else len(output)

        return look

    with ExitStack() as stack, evaluating(model):
        for name, block in blocks.items():
            stack.callback(block.register_forward_hook(see(name)).remove)
        try:
            model(**inputs)
        except UnsupportedError:
            raise
        except FOREIGN_FAILURES as error:
            raise UnsupportedError(
                f"{type(model).__name__} does not run on the meta device ({type(error).__name__}: {error}), so its "
                "blocks cannot be run one by one; quantize it in memory (leave out --stream)"
            ) from error
    idle = [name for name in blocks if name not in forms]
    if idle:
        raise UnsupportedError(
            f"block {idle[0]} did not run with the model's smallest inputs; quantize it in memory (leave out --stream)"
        )
    return forms


def block_inputs(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    forms: Passing,
    weights: SourceWeights,
    data: ForwardLoop,
    hidden: ActivationStore,
) -> tuple[BlockCalls, ModelTail]:
    """Run what is in front of the blocks, with its weights loaded for that time.

    What follows the blocks runs on the meta device, for nothing.

    Args:
        model: The model, on the meta device but for its buffers.
        blocks: Its blocks, in the order they run.
        forms: What they return (`returned_forms`).
        weights: Of the model.
        data: Calibration data.
        hidden: An empty store for what the first block reads.

    Returns:
        (the arguments of each block, what follows the blocks).

    Raises:
        UnsupportedError: a block reads something else than what the one before it returned.
    """
    tail = ModelTail(model, list(blocks.values()))
    run = lambda: run_forward_loop(model, data, quiet=True)  # noqa: E731
    with passing(blocks, forms), loaded_on_call(model, blocks, weights), tail.recording():
        calls = capture_calls(blocks, run, hidden)
    for name, arguments in calls.others.items():
        if any(tensor.is_meta for given in arguments for tensor in tensors_in((given.args, given.kwargs))):
            raise UnsupportedError(
                f"block {name} is called with a tensor whose values are not known before the model is loaded; quantize "
                "this model in memory (leave out --stream)"
            )
    return calls, tail


@contextmanager
def passing(blocks: Mapping[str, nn.Module], forms: Passing) -> Iterator[None]:
    """Let blocks return what they read, the last one without its values, for the time of a context."""
    own = {name: vars(block).get("forward") for name, block in blocks.items()}
    last = list(blocks)[-1]
    try:
        for name, block in blocks.items():
            vars(block)["forward"] = _passing(forms[name], to_meta=name == last)
        yield
    finally:
        for name, block in blocks.items():
            if own[name] is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = own[name]


@contextmanager
def loaded_on_call(
    model: nn.Module, blocks: Mapping[str, nn.Module], weights: SourceWeights
) -> Iterator[None]:
    """Load the weights of modules outside the blocks when they are called with values, for the time of a context."""
    loaded: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if any(name == block or name.startswith(f"{block}.") for block in blocks):
            continue
        own = [*module._parameters, *module._buffers]
        names = [full for key in own if (full := f"{name}.{key}".removeprefix(".")) in weights.names()]
        if names:
            handles.append(
                module.register_forward_pre_hook(_loader(names, weights, loaded), with_kwargs=True)
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        weights.drop(loaded)


def _loader(names: list[str], weights: SourceWeights, loaded: list[str]) -> Callable[..., None]:
    def load(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = list(tensors_in((args, kwargs)))
        if names[0] not in loaded and given and not any(tensor.is_meta for tensor in given):
            weights.load(names)
            loaded.extend(names)

    return load


def _passing(length: int | None, to_meta: bool) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.to("meta") if to_meta else hidden
        return hidden if length is None else (hidden, *[None] * (length - 1))

    return forward
