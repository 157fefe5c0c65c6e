"""What a quantized model asks of the engine that will serve it."""

from __future__ import annotations

from torch import nn

from octavo.core.errors import ExportError
from octavo.core.formats import QuantSpec
from octavo.core.model.fused import fused_groups
from octavo.core.model.targets import ServedLayer, Serving, best_serving
from octavo.core.modules import QuantModule, quantized_layers
from octavo.core.plugins import plugins


def active_specs(layer: QuantModule) -> dict[str, list[QuantSpec]]:
    """Return the formats of each quantizer of a layer that is on."""
    specs = {
        name: [stage.spec for stage in quantizer.stages() if stage.enabled and stage.spec is not None]
        for name, quantizer in layer.quantizers().items()
    }
    return {name: chain for name, chain in specs.items() if chain}


def model_serving(model: nn.Module, target: str) -> Serving:
    """Return from which exporter's checkpoint of `model` the engine `target` loads it.

    Raises:
        ConfigError: the target is unknown.
        ExportError: it loads none; formats, evidence and layers are named.
    """
    fused = {name for group in fused_groups(plugins().describe_model(model)) for name in group}
    layers = {}
    for name, layer in quantized_layers(model):
        if specs := active_specs(layer):
            weight = layer.quantized_weights().get("weight_quantizer")
            shape = None if weight is None or weight.dim() != 2 else tuple(weight.shape)
            layers[name] = ServedLayer(specs, shape, name in fused)
    served = best_serving(layers, target)
    if served.status == "refused":
        raise ExportError(
            "; ".join(served.sentences("refused")) + ". octavo.plan(…, target=…) says so before"
        )
    return served
