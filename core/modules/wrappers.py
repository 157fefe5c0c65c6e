"""Classes that other libraries put around a layer's class or forward, and how a swap composes with them."""

from __future__ import annotations

from types import MethodType

from torch import nn

from octavo.core.errors import UnsupportedError

_wrapped: dict[tuple[type, type[nn.Module]], type[nn.Module]] = {}


def split_wrapper(cls: type[nn.Module]) -> tuple[type[nn.Module] | None, type[nn.Module]]:
    """Return (`cls`, inner class) of a class that FSDP2's `fully_shard` or `replicate` made, else (None, `cls`)."""
    first, *rest = cls.__bases__
    if len(rest) == 1 and "FSDPModule" in [base.__name__ for base in first.__mro__]:
        return cls, rest[0]
    return None, cls


def wrapped_class(wrapper: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    """Return the one class that has `cls` where `wrapper`, from `split_wrapper`, has its inner class."""
    mixin, inner = wrapper.__bases__
    key = (mixin, cls)
    if key not in _wrapped:
        prefix = wrapper.__name__.removesuffix(inner.__name__)
        namespace = {"__module__": cls.__module__, "__deepcopy__": vars(wrapper)["__deepcopy__"]}
        _wrapped[key] = type(f"{prefix}{cls.__name__}", key, namespace)
    return _wrapped[key]


def check_instance_forward(
    name: str, module: nn.Module, new_class: type[nn.Module], consequence: str
) -> None:
    """Refuse a `forward` in the instance's `__dict__` that `rebind_instance_forward` cannot rebind.

    Args:
        name: The layer's name, for messages.
        module: The layer.
        new_class: The class that it is to get.
        consequence: What that forward would do, and the remedy, for messages.

    Raises:
        UnsupportedError: the instance's forward is somebody else's.
    """
    if "forward" in module.__dict__ and _own_forward(module, type(module), new_class) is None:
        raise UnsupportedError(
            f"{name}: this {type(module).__name__} instance has a forward of its own "
            f"({module.__dict__['forward']!r}), {consequence}"
        )


def rebind_instance_forward(
    module: nn.Module, old_class: type[nn.Module], new_class: type[nn.Module]
) -> None:
    """Make the `forward` of `old_class`, where the instance's `__dict__` holds it, that of `new_class`."""
    key = _own_forward(module, old_class, new_class)
    if key is not None:
        module.__dict__[key] = MethodType(new_class.forward, module)


def _own_forward(module: nn.Module, *classes: type[nn.Module]) -> str | None:
    """Return where the instance holds the forward of one of `classes`, if it does.

    accelerate's hooks keep it in `_old_forward`, and leave it in `forward` when they are removed.
    """
    known = [cls.forward for cls in classes]
    for key in ("forward", "_old_forward"):
        method = module.__dict__.get(key)
        if isinstance(method, MethodType) and method.__self__ is module and method.__func__ in known:
            return key
    return None
