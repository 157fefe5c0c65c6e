"""Parameters of which a wrapper of the model has given every rank a part."""

from __future__ import annotations

from torch import nn


def sharded_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that are not here as a whole, under FSDP2 or DeepSpeed's ZeRO-3."""
    return [name for name, parameter in model.named_parameters() if _is_sharded(parameter)]


def _is_sharded(parameter: nn.Parameter) -> bool:
    # By name, since importing DTensor takes longer than all else here. ZeRO-3 leaves the shape of the whole.
    is_part = hasattr(parameter, "ds_shape") and tuple(parameter.shape) != tuple(parameter.ds_shape)
    return type(parameter).__name__ == "DTensor" or is_part
