"""Sites: the layers of a model that can be quantized, and those that cannot, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from octavo.core.modules import (
    QuantExperts,
    QuantModule,
    class_key,
    combined_class,
    fused_layers,
    quantized_class,
    registered_base,
)


@dataclass(frozen=True)
class Site:
    """One layer that can be quantized.

    Attributes:
        name: Its name in the model.
        layer: The layer.
        quantized: The class it would become.
    """

    name: str
    layer: nn.Module
    quantized: type[QuantModule]

    def quantizer_name(self, quantizer: str) -> str:
        """Return the full name of one of its quantizers, which config globs match."""
        return f"{self.name}.{quantizer}" if self.name else quantizer

    def config_names(self, quantizer: str) -> tuple[str, ...]:
        """Return the names that a config may know one of its quantizers by, if not by its own: those of experts."""
        if not issubclass(self.quantized, QuantExperts):
            return ()
        return tuple(map(self.quantizer_name, self.quantized.expert_names(self.layer, quantizer)))

    def is_stacked(self, quantizer: str) -> bool:
        """Whether a quantizer stands for a stack of weights."""
        return any(slot.is_stacked for slot in self.quantized.weight_slots() if slot.quantizer == quantizer)

    def weight_quantizers(self) -> frozenset[str]:
        """Return the names of its quantizers that stand for parameters."""
        return frozenset(slot.quantizer for slot in self.quantized.weight_slots())

    def class_names(self) -> frozenset[str]:
        """Return the names by which a config's `parent_class` may call its class."""
        return class_names(self.layer)


def find_sites(
    model: nn.Module, mixins: Mapping[str, type[QuantModule]]
) -> tuple[list[Site], dict[str, str]]:
    """Return the quantizable layers of `model`, and {layer name: reason} for layers with weights that are not.

    Args:
        model: Any model, on any device.
        mixins: Layers that an adapter makes quantizable, by name: attention and stacked experts.
    """
    sites, reasons = [], {}
    fused = fused_layers(model)
    for name, layer in model.named_modules():
        quantized = quantized_class(type(layer))
        if name in mixins:
            quantized = combined_class(mixins[name], type(layer))
        if layer in fused:
            reasons[name] = fused[layer]
        elif quantized is not None:
            sites.append(Site(name, layer, quantized))
        elif any(parameter.dim() > 1 for parameter in layer.parameters(recurse=False)):
            reasons[name] = _reason(type(layer))
    return sites, reasons


def class_names(layer: nn.Module) -> frozenset[str]:
    """Return the names of a layer's class and its bases: `Linear`, `nn.Linear`, `torch.nn.modules.linear:Linear`."""
    return frozenset(name for cls in type(layer).__mro__ for name in _names(cls))


def _reason(cls: type[nn.Module]) -> str:
    base = registered_base(cls)
    if base is None:
        return f"no quantized class for {cls.__name__ if cls.__module__.startswith('torch.') else class_key(cls)}"
    return (
        f"{class_key(cls)} has a forward of its own, unlike {base.__name__}: "
        "octavo.register(...) a quantized class for it"
    )


def _names(cls: type) -> list[str]:
    names = [cls.__name__, class_key(cls)]
    return [*names, f"nn.{cls.__name__}"] if cls.__module__.startswith("torch.nn.") else names
