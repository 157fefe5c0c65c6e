"""Hooks of the Megatron-core adapter. Imports Megatron-core only inside hooks, for models that are its own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from octavo.core.errors import UnsupportedError
from octavo.core.model.description import ModelDescription
from octavo.core.plugins.hookspecs import PluginInfo
from octavo.core.plugins.markers import hookimpl
from octavo.core.ranks.rank_groups import RankGroups


def is_megatron_model(model: nn.Module) -> bool:
    """Whether `model` is a `MegatronModule`, judged without importing Megatron-core."""
    return any(
        cls.__name__ == "MegatronModule" and cls.__module__.startswith("megatron.core.")
        for cls in type(model).__mro__
    )


@hookimpl
def plugin_info() -> PluginInfo:
    """Describe this plugin."""
    return PluginInfo(
        "megatron_core", "Megatron-core models, whose layers are shared by ranks", ("megatron",)
    )


@hookimpl
def quantized_classes() -> Mapping[str, str]:
    """Return the quantized classes of parallel linear layers, experts' among them, and of core attention."""
    layers, ours = "megatron.core.tensor_parallel.layers", "octavo.adapters.megatron_core.layers"
    engine = "megatron.core.extensions.transformer_engine"
    attention = "megatron.core.transformer.dot_product_attention:DotProductAttention"
    return {
        **{
            f"{engine}:{name}": f"octavo.adapters.megatron_core.te_layers:Quant{name}"
            for name in ("TEColumnParallelLinear", "TELayerNormColumnParallelLinear", "TERowParallelLinear")
        },
        attention: "octavo.adapters.megatron_core.attention:QuantCoreAttention",
        f"{layers}:ColumnParallelLinear": f"{ours}:QuantColumnParallelLinear",
        f"{layers}:RowParallelLinear": f"{ours}:QuantRowParallelLinear",
    }


@hookimpl
def check_model(model: nn.Module) -> None:
    """Refuse versions of Megatron-core that are too old, and what wraps a model."""
    if is_megatron_model(model):
        from octavo.adapters.megatron_core.checks import check_settings, check_unwrapped, check_version

        check_version()
        check_unwrapped(model)
        check_settings(model)


@hookimpl
def describe_model(model: nn.Module) -> ModelDescription | None:
    """Return the blocks of this rank's stage, and which of their layers read the same tensor."""
    if not is_megatron_model(model):
        return None
    from octavo.adapters.megatron_core.description import description_of

    return description_of(model)


@hookimpl
def rank_groups(model: nn.Module) -> Mapping[str, RankGroups] | None:
    """Return which ranks see parts of what quantizers see, from the process groups of their layers."""
    if not is_megatron_model(model):
        return None
    from octavo.adapters.megatron_core.groups import rank_groups_of

    return rank_groups_of(model)


@hookimpl
def prepare_model(model: nn.Module) -> None:
    """Tell layers what they must know of the model, which carries the record of its modes from now on."""
    if is_megatron_model(model):
        from octavo.adapters.megatron_core.expert_probabilities import apply_after
        from octavo.adapters.megatron_core.preparation import prepare_layers

        prepare_layers(model)
        apply_after(model)


@hookimpl
def unprepare_model(model: nn.Module) -> None:
    """Undo `prepare_model`."""
    if is_megatron_model(model):
        from octavo.adapters.megatron_core.expert_probabilities import apply_before
        from octavo.adapters.megatron_core.preparation import unprepare_layers

        unprepare_layers(model)
        apply_before(model)


@hookimpl
def weights_packed(model: nn.Module) -> None:
    """Refuse packed weights, which Megatron-core's layers and checkpoints do not know."""
    if is_megatron_model(model):
        raise UnsupportedError(
            "octavo.compress is not available for Megatron-core models, whose layers and distributed checkpoints hold "
            "dense weights; export the quantized model instead"
        )
