"""Which quantizers only data can calibrate."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.plan.settings import LayerSetting


def waiting_for_data(layers: Iterable[LayerSetting]) -> list[str]:
    """Return the quantizers, by full name, that need data; weights are their own data."""
    return [
        layer.site.quantizer_name(quantizer)
        for layer in layers
        for quantizer, stages in layer.quantizers.items()
        if quantizer not in layer.site.weight_quantizers()
        for stage in stages
        if stage.spec.state and stage.pinned_amax is None
    ]
