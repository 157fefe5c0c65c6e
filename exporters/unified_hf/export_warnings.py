"""What a checkpoint will not hold, or nobody will read as the model computes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from octavo.core.errors import listed
from octavo.core.formats import PerTensor, QuantSpec
from octavo.core.model.serving import active_specs
from octavo.core.plugins import plugins
from octavo.exporters.unified_hf.inspection import ExportableModel
from octavo.exporters.unified_hf.targets import is_read_by_an_engine


def export_warnings(model: nn.Module, parts: ExportableModel) -> Iterator[str]:
    """Yield what a user should know before the checkpoint of `model` is served."""
    unscaled = [name for name, (_, scheme) in parts.layers.items() if _is_dynamic_tensor(scheme.inputs)]
    unscaled += list(parts.attention) if _is_dynamic_tensor(parts.kv) else []
    if unscaled:
        yield (
            f"{len(unscaled)} layers were never calibrated (algorithm None): the checkpoint has no activation scales "
            f"for them ({listed(unscaled, 2)})"
        )
    specs = {name: active_specs(layer) for name, (layer, _) in parts.layers.items()}
    specs |= {name: active_specs(layer) for name, layer in parts.attention.items()}
    unstored = [
        f"{name}.{quantizer}"
        for name, chains in specs.items()
        for quantizer in chains
        if quantizer in ("output_quantizer", "q_bmm_quantizer")
    ]
    if unstored:
        yield f"the dialect has no place for {len(unstored)} quantizers: {listed(unstored, 2)}"
    layers = plugins().attention_layers(model)
    plain = [f"{name}.k_bmm_quantizer" for name in layers if "k_bmm_quantizer" not in specs.get(name, {})]
    if parts.kv is not None and plain:
        yield (
            f"engines quantize the cache of all layers, with the scale 1 where a checkpoint has none, and "
            f"{len(plain)} layers have theirs off ({listed(plain, 2)})"
        )
    unread = sorted(
        {s.quant_algo for _, s in parts.layers.values() if not is_read_by_an_engine(s.quant_algo)}
    )
    if unread:
        yield f"no serving engine reads {', '.join(unread)} yet; Octavo does"


def _is_dynamic_tensor(spec: QuantSpec | None) -> bool:
    return spec is not None and spec.dynamic and isinstance(spec.granularity, PerTensor)
