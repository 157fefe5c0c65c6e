"""Hooks of the Triton kernels."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("triton", "Kernels for NVIDIA devices, in Triton", requires=("triton",))


@hookimpl
def kernels() -> Mapping[str, str]:
    """Return the kernels."""
    return {"triton": "octavo.kernels.triton.kernels:TRITON"}
