"""The plugin of the compiled CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("cpu", "Compiled kernels for the CPU")


@hookimpl
def kernels() -> Mapping[str, str]:
    """Name the kernels and where they are."""
    return {"cpu": "octavo.kernels.cpu.kernels:CPU"}
