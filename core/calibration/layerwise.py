"""Layerwise calibration, block after block: its options, and what the blocks are."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool
from torch import nn

from octavo.core.errors import UnsupportedError
from octavo.core.plugins import plugins


class Layerwise(BaseModel):
    """Whether and how to calibrate block by block; the first two fields are ModelOpt's.

    Attributes:
        enable: Calibrate block by block.
        get_qdq_activations_from_prev_layer: Inputs of a block come from the quantized blocks before it. Off: from the
            original ones.
        memory_limit: Bytes of activations that are kept in memory; the rest goes to a temporary folder.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)
    enable: StrictBool = False
    get_qdq_activations_from_prev_layer: StrictBool = True
    memory_limit: int = Field(default=4_000_000_000, ge=0)


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's blocks by name, in the order they run.

    Raises:
        UnsupportedError: nothing tells what they are.
    """
    description = plugins().describe_model(model)
    if description is not None and description.blocks:
        return {block.name: model.get_submodule(block.name) for block in description.blocks}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len(set(map(type, module))) == 1
    ]
    outer = [found for found in lists if not any(found[0].startswith(f"{name}.") for name, _ in lists)]
    if len(outer) != 1:
        found = ", ".join(name for name, _ in outer) or "none"
        raise UnsupportedError(
            f"layerwise calibration needs to know the blocks of {type(model).__name__}: it has no family map, and not "
            f"one list of modules of one class ({found}); calibrate it whole"
        )
    name, modules = outer[0]
    return {f"{name}.{index}": module for index, module in enumerate(modules)}
