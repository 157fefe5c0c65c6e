"""Attention layers that the config would quantize and no adapter can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.core.config.rules import Rule, decide
from octavo.core.errors import listed
from octavo.core.modules import QuantAttention


def left_out_attention(reasons: Mapping[str, str], rules: Sequence[Rule]) -> list[str]:
    """Return a warning for each reason why attention layers are left out that `rules` would quantize.

    Args:
        reasons: {layer name: reason}, from the adapter.
        rules: The config's entries.
    """
    wanted: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        quantizers = (f"{name}.{quantizer}" for quantizer in QuantAttention.quantizer_names)
        if any(decide(quantizer, frozenset(), rules).enabled for quantizer in quantizers):
            wanted.setdefault(reason, []).append(name)
    return [
        f"attention of {listed(names, 2)} is left out, with its queries, keys and values: {reason}"
        for reason, names in wanted.items()
    ]
