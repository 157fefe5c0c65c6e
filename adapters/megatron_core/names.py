"""Names of modules in the whole model, of which a rank numbers its own layers and experts from 0."""

from __future__ import annotations

from torch import nn


def global_names(model: nn.Module) -> dict[str, str]:
    """Return {name of a module on this rank: its name in a model that one rank has alone}, of all modules.

    A stage of a pipeline has some of the layers, and a rank some of the experts; both are numbered through here.
    """
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.transformer_block import TransformerBlock

    modules, names = dict(model.named_modules()), {"": ""}
    for name, module in modules.items():
        if not name:
            continue
        parent, _, own = name.rpartition(".")
        owner = modules.get(parent.rpartition(".")[0]) if parent else None
        if own.isdigit() and isinstance(owner, TransformerBlock) and hasattr(module, "layer_number"):
            own = str(module.layer_number - 1)
        elif own.isdigit() and isinstance(owner, SequentialMLP):
            own = str(int(own) + owner.ep_group.rank() * owner.num_local_experts)
        names[name] = f"{names[parent]}.{own}".removeprefix(".")
    return names
