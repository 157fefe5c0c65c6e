"""The plugins that ship with Octavo: declared by the face of the package, loaded on first use."""

from __future__ import annotations

_modules: tuple[str, ...] = ()


def declare_builtin_plugins(modules: tuple[str, ...]) -> None:
    """Say which plugin modules ship with Octavo; `octavo/__init__.py` does, once, importing none of them."""
    global _modules
    _modules = modules


def builtin_plugins() -> tuple[str, ...]:
    """Return the declared plugin modules."""
    return _modules
