"""Hooks of the TensorRT-LLM exporter."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("tensorrt_llm", "TensorRT-LLM checkpoints, divided over ranks")


@hookimpl
def exporters() -> Mapping[str, str]:
    """Return the exporter."""
    return {"tensorrt_llm": "octavo.exporters.tensorrt_llm.exporter:EXPORTER"}


@hookimpl
def verifiers() -> Mapping[str, str]:
    """Return the verifier."""
    return {"tensorrt_llm": "octavo.exporters.tensorrt_llm.verification.verifier:VERIFIER"}
