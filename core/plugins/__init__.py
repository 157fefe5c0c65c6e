"""Plugins: hook specifications, loading, and the typed manager."""

from octavo.core.plugins.hookspecs import DataRequest, PluginInfo
from octavo.core.plugins.loading import PluginStatus
from octavo.core.plugins.manager import Plugins, plugins
from octavo.core.plugins.markers import hookimpl

__all__ = ["DataRequest", "PluginInfo", "PluginStatus", "Plugins", "hookimpl", "plugins"]
