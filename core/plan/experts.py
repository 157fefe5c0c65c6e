"""Expert weights that a config would quantize and that no quantized class stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from octavo.core.config.rules import Rule, decide
from octavo.core.errors import listed
from octavo.core.modules import QuantExperts
from octavo.core.plan.settings import LayerSetting
from octavo.core.plan.sites import class_names


def expert_problems(
    model: nn.Module, uncovered_layers: Iterable[str], rules: Sequence[Rule]
) -> Iterator[str]:
    """Yield an error if experts, most of a model, would silently stay as they are.

    A config speaks of the parameter `p` of such a layer as of a quantizer `<layer>.<p>_weight_quantizer`.

    Args:
        model: The model.
        uncovered_layers: Names of its layers with weights that cannot be quantized.
        rules: The config.
    """
    missed = [
        f"{name}.{own_name}"
        for name in uncovered_layers
        for own_name in _expert_weights(name, model.get_submodule(name))
        if decide(_quantizer_name(name, own_name), class_names(model.get_submodule(name)), rules).enabled
    ]
    if missed:
        globs = sorted({f"*.{name.split('.')[-2]}.*" for name in missed})
        entries = ", ".join(f"{{'quantizer_name': {glob!r}, 'enable': False}}" for glob in globs)
        yield (
            f"{len(missed)} weights of experts would stay as they are, since no quantized class stands for their "
            f"layers: {listed(missed)}. Leave them out on purpose ({entries}), or octavo.register(...) a class"
        )


def stack_problems(layers: Iterable[LayerSetting]) -> Iterator[str]:
    """Yield an error for each layer of stacked experts whose parameters disagree with each other."""
    for layer in layers:
        quantized = layer.site.quantized
        if issubclass(quantized, QuantExperts) and (found := quantized.disagreement(layer.site.layer)):
            yield (
                f"{layer.site.name}: its stacked parameters disagree: {found}. Repair the model, or leave these "
                f"experts out ({{'quantizer_name': '*{layer.site.name}*', 'enable': False}})"
            )


def _expert_weights(name: str, layer: nn.Module) -> list[str]:
    if "expert" not in f"{name}.{type(layer).__name__}".lower():
        return []
    parameters = layer.named_parameters(recurse=False)
    return [own for own, parameter in parameters if parameter.dim() > 1 and not own.endswith("bias")]


def _quantizer_name(layer: str, own_name: str) -> str:
    return f"{layer}.weight_quantizer" if own_name == "weight" else f"{layer}.{own_name}_weight_quantizer"
