"""Registry of quantized layer classes, keyed by qualified class name so that no framework need be imported."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn

from octavo.core.errors import ConfigError, nearest
from octavo.core.modules.base import QuantModule
from octavo.core.modules.wrappers import split_wrapper

_classes: dict[str, str | type[QuantModule]] = {
    "torch.nn.modules.linear:Linear": "octavo.core.modules.linear:QuantLinear",
}

_combined: dict[tuple[type[QuantModule], type[nn.Module]], type[QuantModule]] = {}


def class_key(cls: type) -> str:
    """Return the key of a class, `package.module:Qualified.Name`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def register(original: type[nn.Module] | str, quantized: type[QuantModule] | str) -> None:
    """Register the quantized class that layers of class `original` become.

    Args:
        original: The layer class, or its key `package.module:Class`, which imports nothing.
        quantized: A subclass of `QuantModule` and of `original`, or its key, imported on first use.

    Raises:
        ConfigError: `original` has a quantized class already, or `quantized` is not a subclass of both.
    """
    key = original if isinstance(original, str) else class_key(original)
    if key in _classes:
        raise ConfigError(f"{key} is registered already, as {_classes[key]}; unregister it first")
    if not isinstance(original, str) and not isinstance(quantized, str):
        _check_bases(original, quantized)
    _classes[key] = quantized


def unregister(original: type[nn.Module] | str) -> None:
    """Forget the quantized class of `original`; models quantized already keep theirs.

    Raises:
        ConfigError: it was not registered.
    """
    key = original if isinstance(original, str) else class_key(original)
    if key not in _classes:
        raise ConfigError(f"{key} is not registered.{nearest(key, _classes)}")
    del _classes[key]


def quantized_class(cls: type[nn.Module]) -> type[QuantModule] | None:
    """Return the quantized class for layers of class `cls`, or None.

    A subclass of a registered class is served, by a class made on the fly, only if it inherits the very
    `forward` that the quantized class replaces: anything else would silently compute something different.
    """
    _, cls = split_wrapper(cls)
    if class_key(cls) in _classes:
        return _load(class_key(cls))
    base = registered_base(cls)
    if base is None or cls.forward is not base.forward:
        return None
    return combined_class(_load(class_key(base)), cls)


def registered_base(cls: type) -> type[nn.Module] | None:
    """Return the nearest proper base class of `cls` that is registered, or None."""
    return next((base for base in cls.__mro__[1:] if class_key(base) in _classes), None)


def combined_class(quantized: type[QuantModule], original: type[nn.Module]) -> type[QuantModule]:
    """Return the one class `Quant<Original>` that puts the mixin or class `quantized` before `original`."""
    key = (quantized, original)
    if key not in _combined:
        namespace = {"__module__": original.__module__}
        _combined[key] = type(f"Quant{original.__name__}", key, namespace)
    return _combined[key]


def _load(key: str) -> type[QuantModule]:
    entry = _classes[key]
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        entry = getattr(import_module(module), name)
    return entry


def _check_bases(original: type[nn.Module], quantized: type[QuantModule]) -> None:
    expected: list[tuple[type, Callable[..., object]]] = [(QuantModule, issubclass), (original, issubclass)]
    for base, check in expected:
        if not check(quantized, base):
            raise ConfigError(
                f"{class_key(quantized)} must be a subclass of {class_key(base)} to stand for layers of class "
                f"{class_key(original)}"
            )
