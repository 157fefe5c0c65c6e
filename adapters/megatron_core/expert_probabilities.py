"""Experts whose outputs, not hidden values, are multiplied by the router's probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from octavo.adapters.megatron_core.layers import QuantParallelLinear

_HOOKS = "_octavo_probability_hooks"


def apply_after(model: nn.Module) -> None:
    """Let experts with a quantized `linear_fc2` apply the router's probabilities to what that returns.

    Megatron-core multiplies the hidden values, which `linear_fc2` reads. The product is the same. What its input
    quantizer sees is not: checkpoints and engines that follow Hugging Face read hidden values as they are.
    """
    from megatron.core.transformer.mlp import MLP

    experts = [
        module for module in model.modules() if isinstance(module, MLP) and _is_quantized(module.linear_fc2)
    ]
    for expert in experts:
        if _HOOKS not in expert.__dict__:
            waiting: list[Tensor | None] = []
            expert.__dict__[_HOOKS] = (
                expert.register_forward_pre_hook(_keeper(waiting), with_kwargs=True),
                expert.register_forward_hook(_multiplier(waiting)),
            )


def apply_before(model: nn.Module) -> None:
    """Undo `apply_after`."""
    for module in model.modules():
        for hook in module.__dict__.pop(_HOOKS, ()):
            hook.remove()


def _is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, QuantParallelLinear) and bool(getattr(layer, "is_expert", False))


def _keeper(waiting: list[Tensor | None]) -> Any:
    """Return a hook that keeps the probabilities [tokens] from the expert that is called."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = dict(kwargs)
        given = args[1] if len(args) > 1 else kwargs.pop("per_token_scale", None)
        waiting.append(given)
        return (args[0], None, *args[2:]) if len(args) > 1 else args, kwargs

    return keep


def _multiplier(waiting: list[Tensor | None]) -> Any:
    """Return a hook that multiplies what an expert returns: (output [tokens, hidden], bias [hidden] or None)."""

    def multiply(_: nn.Module, args: tuple[Any, ...], found: tuple[Tensor, Tensor | None]) -> Any:
        output, bias = found
        probabilities = waiting.pop()
        if probabilities is None:
            return found
        whole = output if bias is None else output + bias
        return (whole * probabilities.unsqueeze(-1)).to(output.dtype), None

    return multiply
