"""The plugin: the framework's adapter hooks, its layer class and its export target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo import hookimpl
from octavo.core.plugins.hookspecs import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(
        "scaled", "The scaled framework: its layer, its models, its checkpoints", ("octavo_scaled",)
    )


@hookimpl
def quantized_classes() -> dict[str, str]:
    return {"octavo_scaled.layers:ScaledLinear": "octavo_scaled.quantized:QuantScaledLinear"}


@hookimpl
def exporters() -> dict[str, str]:
    return {"scaled": "octavo_scaled.exporter:EXPORTER"}


@hookimpl
def calibration_algorithms() -> dict[str, str]:
    return {"halve": "octavo_scaled.algorithm:Halve"}


@hookimpl
def tiny_inputs(model: nn.Module) -> dict[str, Any] | None:
    if type(model).__module__ != "octavo_scaled.layers":
        return None
    parameter = next(model.parameters())
    return {"x": torch.ones(1, model.width, device=parameter.device, dtype=parameter.dtype)}


@hookimpl
def build_model(directory: Path, dtype: torch.dtype | None) -> nn.Module | None:
    if not (directory / "scaled.json").is_file():
        return None
    from octavo_scaled.layers import ScaledModel

    return ScaledModel(json.loads((directory / "scaled.json").read_text())["width"]).to(dtype)
