"""Plugins: hook specifications, loading, and the typed manager."""

from octavo.core.plugins.manager import Plugins, plugins

__all__ = ["Plugins", "plugins"]
