"""Parameters of which a wrapper of the model has given every rank a part."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.core.errors import UnsupportedError


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether torch has divided a tensor among ranks (FSDP2)."""
    # By name, since importing DTensor takes longer than all else here.
    return type(tensor).__name__ == "DTensor"


def is_zero(tensor: Tensor) -> bool:
    """Return whether a parameter is DeepSpeed's ZeRO-3's, which shows all of it or none."""
    return hasattr(tensor, "ds_id")


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a parameter is not here as a whole, under FSDP2 or DeepSpeed's ZeRO-3."""
    # ZeRO-3 leaves an empty tensor, and the shape of the whole beside it.
    return is_dtensor(tensor) or tuple(tensor.shape) != whole_shape(tensor)


def whole_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape that a tensor has, or would have if all of it were here."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def local_part(tensor: Tensor) -> Tensor:
    """Return what of a parameter is on this rank: all of it, where it is not divided."""
    if is_dtensor(tensor):
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part
    return getattr(tensor, "ds_tensor", tensor)


def sharded_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are not here as a whole."""
    return [name for name, parameter in model.named_parameters() if is_sharded(parameter)]


def spans_ranks(model: nn.Module) -> bool:
    """Return whether a model's wrapper makes every rank run it together: its parameters are divided, or DDP's."""
    return is_replicated(model) or bool(sharded_names(model))


def is_replicated(model: nn.Module) -> bool:
    """Return whether DDP has wrapped a model, or something in it."""
    return any(type(module).__name__ == "DistributedDataParallel" for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Let FSDP2 take back the parameters that a forward pass without a backward pass left whole.

    An optimizer that is made now would train these, and not the ones that FSDP2 keeps.
    """
    for module in model.modules():
        if "FSDPModule" in (cls.__name__ for cls in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def check_whole(model: nn.Module, doing: str) -> None:
    """Refuse what needs whole parameters.

    Args:
        model: The model.
        doing: What needs them, to begin the message with.

    Raises:
        UnsupportedError: some are sharded; the first is named.
    """
    if sharded := sharded_names(model):
        raise UnsupportedError(
            f"{doing} needs whole weights, and {len(sharded)} parameters are sharded (first {sharded[0]!r}); do this "
            "before fully_shard, DeepSpeed's ZeRO-3 or another wrapper shards the model"
        )
