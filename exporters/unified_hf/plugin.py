"""Hooks of the unified Hugging Face exporter."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("unified_hf", "Unified Hugging Face checkpoints in ModelOpt's dialect")


@hookimpl
def exporters() -> Mapping[str, str]:
    """Return the exporter."""
    return {"unified_hf": "octavo.exporters.unified_hf.exporter:EXPORTER"}


@hookimpl
def verifiers() -> Mapping[str, str]:
    """Return the verifier."""
    return {"unified_hf": "octavo.exporters.unified_hf.verification.verifier:VERIFIER"}
