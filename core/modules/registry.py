"""Registry of quantized layer classes, keyed by qualified class name so that no framework need be imported."""

from __future__ import annotations

import pkgutil
from typing import Any, cast

from torch import nn

from octavo.core.errors import FOREIGN_FAILURES, ConfigError, nearest
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
        ConfigError: `original` has another quantized class already, a key is not one, or `quantized` is not a
            subclass of both. What keys stand for is looked at when such a layer is met.
    """
    for entry in (original, quantized):
        if isinstance(entry, str):
            _check_key(entry)
    key = original if isinstance(original, str) else class_key(original)
    if _classes.get(key, quantized) != quantized:
        raise ConfigError(f"{key} is registered already, as {_classes[key]}; unregister it first")
    if not isinstance(original, str) and not isinstance(quantized, str):
        _checked(original, quantized)
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

    Raises:
        ConfigError: the registered class cannot be imported, or is not a subclass of both `QuantModule` and the class
            that it is registered for.
    """
    _, cls = split_wrapper(cls)
    base = registered_base(cls)
    if base is None or cls.forward is not base.forward:
        return None
    quantized = _load(base)
    return quantized if base is cls else combined_class(quantized, cls)


def registered_base(cls: type) -> type[nn.Module] | None:
    """Return the nearest class that is registered, among `cls` and its bases, or None."""
    return next((base for base in cls.__mro__ if class_key(base) in _classes), None)


def combined_class(quantized: type[QuantModule], original: type[nn.Module]) -> type[QuantModule]:
    """Return the one class `Quant<Original>` that puts the mixin or class `quantized` before `original`."""
    key = (quantized, original)
    if key not in _combined:
        namespace = {"__module__": original.__module__}
        _combined[key] = type(f"Quant{original.__name__}", key, namespace)
    return _combined[key]


def _load(original: type[nn.Module]) -> type[QuantModule]:
    key = class_key(original)
    quantized = _classes[key]
    if isinstance(quantized, str):
        try:
            quantized = pkgutil.resolve_name(quantized)
        except FOREIGN_FAILURES as error:
            raise ConfigError(
                f"{_classes[key]}, the quantized class of {key}, cannot be imported "
                f"({type(error).__name__}: {error}); install it, or register another"
            ) from error
    return _checked(original, quantized)


def _check_key(key: str) -> None:
    module, _, name = key.partition(":")
    if not module or not name or ":" in name:
        raise ConfigError(
            f"{key!r} is not the key of a class; expected package.module:Class, where the class is defined, such as "
            "torch.nn.modules.linear:Linear"
        )


def _checked(original: type[nn.Module], quantized: Any) -> type[QuantModule]:
    for base in (QuantModule, original):
        if not (isinstance(quantized, type) and issubclass(quantized, base)):
            raise ConfigError(
                f"{class_key(quantized)} must be a subclass of {class_key(base)} to stand for layers of class "
                f"{class_key(original)}"
            )
    return cast("type[QuantModule]", quantized)
