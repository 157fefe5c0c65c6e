"""Where quantized experts are in checkpoints, whose framework holds them in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from octavo.core.model.checkpoint_layout import CheckpointLayout, Parts
from octavo.core.model.module_names import module_names
from octavo.core.modules import QuantExperts
from octavo.core.plugins import plugins


def layout_in_files(model: nn.Module, is_quantized: Callable[[str], bool]) -> CheckpointLayout:
    """Return where a quantized checkpoint's tensors are in a plain `model` of its config.

    Args:
        model: The model.
        is_quantized: Asked with the name of an expert's first matrix: whether the checkpoint holds it as one.
    """
    layout = plugins().checkpoint_layout(model, list(model.state_dict()))
    experts = plugins().expert_layers(model)
    return with_experts_apart(layout, model, experts, lambda _, matrix: is_quantized(matrix))


def with_experts_apart(
    layout: CheckpointLayout,
    model: nn.Module,
    experts: Mapping[str, type[QuantExperts]],
    is_quantized: Callable[[str, str], bool],
) -> CheckpointLayout:
    """Return `layout` with those experts taken apart that only quantized checkpoints hold as matrices.

    Their names are the model's own, `<layer>.3.gate_proj.weight`, as in ModelOpt's checkpoints.

    Args:
        layout: Where the framework's checkpoints hold the model's parameters.
        model: The model.
        experts: Its layers of stacked experts, and the mixins that stand for them.
        is_quantized: Asked with a parameter that the framework holds in one tensor and the name of its first
            matrix: whether the checkpoint holds it as matrices.
    """
    modules = module_names(layout.names)
    apart: dict[str, Parts] = {}
    for name, mixin in experts.items():
        for own in mixin.projections:
            parts = mixin.parts(model.get_submodule(name), own)
            if f"{name}.{own}" not in layout.names or parts is None:
                continue
            place = _renamed(name, modules)
            named = tuple(tuple(f"{place}.{matrix}" for matrix in matrices) for matrices in parts)
            if is_quantized(f"{name}.{own}", named[0][0]):
                apart[f"{name}.{own}"] = named
    whole = {own: new for own, new in layout.names.items() if own not in apart}
    return CheckpointLayout(whole, {**layout.parts, **apart})


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """Return a module's name in the checkpoint, by that of the nearest module around it."""
    inner, outer = "", name
    while outer and outer not in modules:
        outer, _, last = outer.rpartition(".")
        inner = f".{last}{inner}"
    return (modules[outer] + inner).removeprefix(".") if outer else name
