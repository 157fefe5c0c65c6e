"""The tensors that a model of a config.json has, by their names in checkpoints: what a reader waits for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from octavo.core.model.checkpoint_layout import CheckpointLayout, Place
from octavo.core.model.expert_layout import with_experts_apart
from octavo.core.model.module_names import module_names
from octavo.core.modules import quantized_class
from octavo.core.plugins import plugins


@dataclass(frozen=True)
class ExpectedModel:
    """What a model's plain checkpoint holds.

    Attributes:
        shapes: Shape of each tensor by checkpoint name; weights of linear layers are [out, in].
        same: Names of tensors that are one parameter in the model (a tied head), by each of them.
        linears: Modules that multiply with their `weight` and have a quantized form; experts' matrices, too.
        routers: Other modules with a matrix for `weight`, but for embeddings.
        stacks: Parameters that hold all experts of a layer in one tensor.
        attention: Attention modules whose keys and values may be quantized.
    """

    shapes: Mapping[str, tuple[int, ...]]
    same: Mapping[str, frozenset[str]]
    linears: frozenset[str]
    routers: frozenset[str]
    stacks: frozenset[str]
    attention: frozenset[str]


def expected_model(
    directory: Path, stored: Collection[str], trust_remote_code: bool = False
) -> ExpectedModel:
    """Return what the model of `directory`'s config.json has, built without memory for its weights.

    Args:
        directory: The checkpoint.
        stored: Names of its tensors: experts are expected apart unless it holds them in one.
        trust_remote_code: Run modelling code that the checkpoint brings.

    Raises:
        CheckpointError, ConfigError, PluginError, UnsupportedError: no adapter can build it; the reason is named.
    """
    with torch.device("meta"):
        model = plugins().build_model(directory, None, trust_remote_code)
    layout = _layout(model, stored)
    places, tensors = layout.places(), model.state_dict(keep_vars=True)
    modules = {name: model.get_submodule(place.name.rpartition(".")[0]) for name, place in places.items()}
    shapes = {name: _shape(place.of(tensors[place.name]), modules[name]) for name, place in places.items()}
    matrices = {name for name in places if name.endswith(".weight") and len(shapes[name]) == 2}
    linears = {n for n in matrices if places[n].index is not None or _is_linear(modules[n])}
    routers = {n for n in matrices - linears if not isinstance(modules[n], nn.Embedding)}
    renamed = module_names({place.name: name for name, place in places.items() if place.index is None})
    return ExpectedModel(
        shapes,
        _same(places, tensors),
        frozenset(name.removesuffix(".weight") for name in linears),
        frozenset(name.removesuffix(".weight") for name in routers),
        frozenset(name for name, place in places.items() if place.index is None and len(shapes[name]) == 3),
        frozenset(renamed.get(name, name) for name in plugins().attention_layers(model)),
    )


def _layout(model: nn.Module, stored: Collection[str]) -> CheckpointLayout:
    layout = plugins().checkpoint_layout(model, list(model.state_dict()))
    return with_experts_apart(
        layout, model, plugins().expert_layers(model), lambda own, _: layout.names.get(own) not in stored
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    quantized = quantized_class(type(module))
    return quantized is not None and quantized.weight_is_transposed


def _shape(part: torch.Tensor, module: nn.Module) -> tuple[int, ...]:
    return tuple(reversed(part.shape)) if part.dim() == 2 and _is_transposed(module) else tuple(part.shape)


def _same(places: Mapping[str, Place], tensors: Mapping[str, torch.Tensor]) -> dict[str, frozenset[str]]:
    by_parameter: dict[int, set[str]] = {}
    for name, place in places.items():
        if place.index is None:
            by_parameter.setdefault(id(tensors[place.name]), set()).add(name)
    return {name: frozenset(group) for group in by_parameter.values() for name in group}
