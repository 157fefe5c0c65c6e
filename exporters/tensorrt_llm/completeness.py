"""Completeness: every tensor of the model has a place in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.core.errors import ExportError, listed
from octavo.core.model.description import ModelDescription
from octavo.exporters.tensorrt_llm.joined import HEAD, JoinedLayer, outer_modules, plain_modules
from octavo.exporters.tensorrt_llm.source import WeightSource


def check_complete(
    source: WeightSource,
    description: ModelDescription,
    linear: Iterable[JoinedLayer],
    names: Mapping[str, str],
) -> None:
    """Refuse a model with tensors that would be left out.

    Args:
        source: Where the tensors come from.
        description: The model in canonical roles.
        linear: The linear layers that are written.
        names: The roles that its family calls otherwise.

    Raises:
        ExportError: a layer of the model has a weight or bias and no role that is written; such tensors are named.
    """
    written = {name for layer in linear for name in layer.layers}
    written |= {module for _, module in outer_modules(description)} | {description.roles.get(HEAD, "")}
    for number in range(len(description.blocks)):
        written |= {module for _, module in plain_modules(description, number, names)}
    left = [name for name in source.names if name.rpartition(".")[0] not in written]
    if left:
        raise ExportError(
            f"{len(left)} tensors of the model have no place in TensorRT-LLM checkpoints of its family: "
            f"{listed(left, 3)}. The model is another variant than the ones that are known; use export_hf_checkpoint"
        )
