"""What a checkpoint will not hold, or nobody will read as the model computes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from octavo.core.errors import listed
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.serving import active_specs, unstored_quantizers
from octavo.core.modules import QuantModule
from octavo.core.plugins import plugins
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.inspection import ExportableModel
from octavo.exporters.unified_hf.targets import is_read_by_an_engine


def export_warnings(model: nn.Module, parts: ExportableModel) -> Iterator[str]:
    """Yield what a user should know before the checkpoint of `model` is served."""
    unscaled = [
        parts.weights[name].layer_name
        for name, scheme in parts.schemes.items()
        if _is_dynamic_tensor(scheme.inputs)
    ]
    unscaled += list(parts.attention) if _is_dynamic_tensor(parts.kv) else []
    if unscaled:
        yield (
            f"{len(unscaled)} layers were never calibrated (algorithm None): the checkpoint has no activation scales "
            f"for them ({listed(unscaled, 2)})"
        )
    yield from unstored_quantizers(model, UnifiedHfDialect())
    if rotated := [name for name, layer in parts.attention.items() if _rotates(layer)]:
        yield (
            f"checkpoints do not say that queries and keys are rotated, so the cache of {len(rotated)} layers is left "
            f"as it is ({listed(rotated, 2)}); octavo.save keeps it"
        )
    layers = plugins().attention_layers(model)
    specs = {name: active_specs(layer) for name, layer in parts.attention.items()}
    plain = [f"{name}.k_bmm_quantizer" for name in layers if "k_bmm_quantizer" not in specs.get(name, {})]
    if parts.kv is not None and plain:
        yield (
            f"engines quantize the cache of all layers, with the scale 1 where a checkpoint has none, and "
            f"{len(plain)} layers have theirs off ({listed(plain, 2)})"
        )
    algorithms = {scheme.quant_algo for scheme in parts.schemes.values()}
    unread = sorted(name for name in algorithms if not is_read_by_an_engine(name))
    if unread:
        yield f"no serving engine reads {', '.join(unread)} yet; Octavo does"


def _rotates(layer: QuantModule) -> bool:
    return any(stage.rotation is not None for q in layer.quantizers().values() for stage in q.stages())


def _is_dynamic_tensor(spec: QuantSpec | None) -> bool:
    return spec is not None and spec.dynamic and isinstance(spec.granularity, PerTensor)
