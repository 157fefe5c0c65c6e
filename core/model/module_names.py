"""Module names in checkpoints, which follow from those of their parameters."""

from __future__ import annotations

from collections.abc import Mapping


def module_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return {module: its other name} from {parameter: its other name}, for a model's or a checkpoint's names.

    ``a.b.weight`` that is called ``x.b.weight`` elsewhere says that ``a.b`` is ``x.b`` and ``a`` is ``x``.
    """
    modules: dict[str, str] = {}
    for name, other in names.items():
        module, _, last = name.rpartition(".")
        other_module, _, other_last = other.rpartition(".")
        while last and last == other_last:
            modules.setdefault(module, other_module)
            module, _, last = module.rpartition(".")
            other_module, _, other_last = other_module.rpartition(".")
    return modules
