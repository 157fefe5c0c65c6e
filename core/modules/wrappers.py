"""Classes that other libraries put around a layer's class or forward, and how a swap composes with them."""

from __future__ import annotations

from types import MethodType

from torch import nn

from octavo.core.errors import UnsupportedError

_wrapped: dict[tuple[type, type[nn.Module]], type[nn.Module]] = {}


def split_wrapper(cls: type[nn.Module]) -> tuple[type | None, type[nn.Module]]:
    """Return (FSDPModule, inner class) of a class that FSDP2's `fully_shard` made, else (None, `cls`)."""
    first, *rest = cls.__bases__
    if first.__name__ == "FSDPModule" and len(rest) == 1:
        return first, rest[0]
    return None, cls


def wrapped_class(wrapper: type, cls: type[nn.Module]) -> type[nn.Module]:
    """Return the one class that is `cls` under FSDP2's `wrapper`, named as `fully_shard` names it."""
    key = (wrapper, cls)
    if key not in _wrapped:
        _wrapped[key] = type(f"FSDP{cls.__name__}", key, {"__module__": cls.__module__})
    return _wrapped[key]


def rebind_instance_forward(name: str, module: nn.Module, new_class: type[nn.Module]) -> None:
    """Make a `forward` that lives in the instance's `__dict__` run `new_class.forward`.

    accelerate's hooks keep the layer's own forward in `_old_forward`; that one is replaced.

    Raises:
        UnsupportedError: the instance's forward is somebody else's, so a swapped class would never run.
    """
    instance = module.__dict__
    if "forward" not in instance:
        return
    old = instance.get("_old_forward")
    known = isinstance(old, MethodType) and old.__self__ is module and old.__func__ is type(module).forward
    if not known:
        raise UnsupportedError(
            f"{name}: this {type(module).__name__} instance has a forward of its own ({instance['forward']!r}), "
            "which would hide a quantized class. Quantize before whatever installed it, or exclude the layer"
        )
    instance["_old_forward"] = MethodType(new_class.forward, module)
