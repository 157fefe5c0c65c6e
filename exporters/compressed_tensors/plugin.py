"""Hooks of the compressed-tensors exporter."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("compressed_tensors", "compressed-tensors checkpoints: INT, FP8, NVFP4 and MX formats")


@hookimpl
def exporters() -> Mapping[str, str]:
    """Return the exporter."""
    return {"compressed_tensors": "octavo.exporters.compressed_tensors.exporter:EXPORTER"}


@hookimpl
def verifiers() -> Mapping[str, str]:
    """Return the verifier."""
    return {"compressed_tensors": "octavo.exporters.compressed_tensors.verification.verifier:VERIFIER"}
