"""Parameters that several modules use, whether as one object or as several over the same memory."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn


def sharing_names(model: nn.Module) -> dict[str, list[str]]:
    """Return {parameter: the other names of its values}, of those that two modules or more hold.

    A module under two names shares nothing: it is one module. Parts of one larger tensor are no ties.
    """
    names: dict[Hashable, list[str]] = {}
    for module_name, module in model.named_modules():  # each once
        own = module.named_parameters(module_name, recurse=False, remove_duplicate=False)
        for name, parameter in own:
            names.setdefault(_memory(parameter), []).append(name)
    return {
        name: [other for other in group if other != name]
        for group in names.values()
        if len(group) > 1
        for name in group
    }


def _memory(parameter: Tensor) -> Hashable:
    """Return what parameters with the same values in memory have in common; code that ties by `.data` makes such."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.device, parameter.data_ptr(), parameter.numel()
