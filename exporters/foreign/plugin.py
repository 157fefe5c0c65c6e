"""Hooks of the readers of other tools' checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("foreign", "Reads checkpoints of AutoAWQ and GPTQ")


@hookimpl
def exporters() -> Mapping[str, str]:
    """Return the readers, which refuse to export."""
    module = "octavo.exporters.foreign.read_only"
    return {"awq": f"{module}:AWQ", "gptq": f"{module}:GPTQ"}
