"""Whether a model is in a state in which it can be planned, and quantized."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from octavo.core.errors import ModeError, PlanError
from octavo.core.model.sharded import sharded_names
from octavo.core.modules import quantized_layers


def check_plain(model: nn.Module) -> None:
    """Refuse a model that cannot be planned.

    Raises:
        ModeError: the model is quantized already.
        PlanError: a lazy layer has no shape yet; its parameter is named.
    """
    already = [name for name, _ in quantized_layers(model)]
    if already:
        raise ModeError(
            f"the model is quantized already ({len(already)} layers, first {already[0]!r}); "
            "call octavo.unquantize(model) first"
        )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise PlanError(
            f"{len(lazy)} parameters of lazy layers have no shape yet (first {lazy[0]!r}); run the model once"
        )


def check_device(model: nn.Module) -> None:
    """Refuse a model whose weights are not here as a whole.

    Raises:
        PlanError: parameters or buffers are on the meta device, or parameters are sharded; the first is named.
    """
    check_values(model)
    sharded = sharded_names(model)
    if sharded:
        raise PlanError(
            f"{len(sharded)} parameters are sharded (first {sharded[0]!r}); do this before fully_shard, DeepSpeed's "
            "ZeRO-3 or another wrapper shards the model"
        )


def check_values(model: nn.Module) -> None:
    """Refuse a model whose weights have no values, here or on other ranks.

    Raises:
        PlanError: parameters or buffers are on the meta device; the first is named.
    """
    for kind, tensors in (("parameters", model.named_parameters()), ("buffers", model.named_buffers())):
        meta = [name for name, tensor in tensors if tensor.is_meta]
        if meta:
            raise PlanError(
                f"{len(meta)} {kind} are on the meta device, without values (first {meta[0]!r}); "
                "load the weights first. octavo.plan works on such a model"
            )
