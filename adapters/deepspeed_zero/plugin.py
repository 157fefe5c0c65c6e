"""Hooks of the DeepSpeed adapter. Imports deepspeed only for parameters that ZeRO-3 has divided."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import cast

from torch import nn

from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo("deepspeed_zero", "DeepSpeed's ZeRO-3: weights divided among ranks", ("deepspeed",))


@hookimpl
def gathered_parameters(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None] | None:
    """Gather parameters of ZeRO-3, to read them."""
    if not all(hasattr(parameter, "ds_id") for parameter in parameters):
        return None
    import deepspeed

    # `modifier_rank=None`: nobody writes, so nothing is sent back at the end.
    context = deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None)
    return cast("AbstractContextManager[None]", context)
