"""A rank's part of a Megatron-core tensor, or of what follows its rows or columns, copied to where it belongs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo.adapters.megatron_core.conversion.runs import runs_of_rank
from octavo.adapters.megatron_core.conversion.shares import Share
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor
from octavo.core.errors import ExportError


def put(
    values: Tensor,
    share: Share,
    tensor: MegatronTensor,
    views: Sequence[Tensor | None],
    own_dim: int | None = None,
    unit: int = 1,
) -> None:
    """Copy a rank's part to where its entries belong.

    Args:
        values: The part: of the tensor, or of scales that follow the dim along which ranks divide it.
        share: Whose it is.
        tensor: All of the tensor.
        views: Where its parts are; what belongs to None is left out.
        own_dim: The dim of `values` and `views` that follows; None: the tensor's own.
        unit: Entries of the tensor for which one of `values` stands.

    Raises:
        ExportError: the part has another length than the model's config says, or one entry stands for two parts.
    """
    dim, ranks = tensor.dim, share.ranks if tensor.is_divided else 1
    own_dim = dim if own_dim is None else own_dim
    sizes = [part.shape[dim] for part in tensor.parts]
    length = values.shape[own_dim] * unit
    padding = max(0, length * ranks - sum(sizes)) if tensor.division == "vocabulary" else 0
    if length * ranks != sum(sizes) + padding:
        raise ExportError(
            f"{tensor.name} has {length} entries along dim {dim} on each of {ranks} ranks, and the Hugging Face model "
            f"{sum(sizes)} in all: the model is not that of its config"
        )
    start = 0
    for run in runs_of_rank(sizes, tensor.groups_over(ranks), share.rank, ranks, padding):
        if run.start % unit or run.length % unit:
            raise ExportError(
                f"{tensor.name} has scales for {unit} entries along dim {dim} each, of which some belong to two "
                "tensors of the checkpoint; use smaller blocks, or leave the layer out"
            )
        first, number = run.start // unit, run.length // unit
        view = None if run.part is None else views[run.part]
        if view is not None:
            view.narrow(own_dim, first, number).copy_(values.narrow(own_dim, start, number))
        start += number
