"""Dialects whose caches are codes and scales alone."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.errors import ExportError, listed
from octavo.core.modules import QuantAttention


def check_plain_caches(layers: Mapping[str, QuantAttention], dialect: str) -> None:
    """Refuse biases and rotations of queries, keys and values.

    Args:
        layers: Attention layers by name.
        dialect: What the checkpoints are called.

    Raises:
        ExportError: there are such; they are named.
    """
    found = [
        f"{name}.{quantizer}: {stage.bias or stage.rotation}"
        for name, layer in layers.items()
        for quantizer, chain in layer.quantizers().items()
        for stage in chain.stages()
        if stage.rotation is not None or (stage.bias is not None and stage.enabled)
    ]
    if found:
        raise ExportError(
            f"{dialect} checkpoints have no place for biases and rotations of queries, keys and values, found "
            f"{listed(found, 2)}; leave them out, or keep the model by octavo.save"
        )
