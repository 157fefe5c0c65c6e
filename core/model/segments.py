"""RowSegments: how the rows of one fused parameter divide into the tensors it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.errors import ShapeError


@dataclass(frozen=True)
class RowSegments:
    """The rows are `groups` runs of equal length, and in each run lie the rows of every role in turn.

    One group is ``[q; k; v]``; as many as there are heads is ``[q₀; k₀; v₀; q₁; k₁; v₁; …]``.

    Attributes:
        rows_per_group: Role (`attention.q`, `mlp.gate`, …) to its number of rows in a group, in their order.
        groups: Number of groups.
        weight_dim: Dim of the layer's weight along which its rows lie: 1 where that is stored as [in, out].
    """

    rows_per_group: Mapping[str, int]
    groups: int = 1
    weight_dim: int = 0

    @property
    def total_rows(self) -> int:
        """Number of rows of the whole parameter."""
        return self.groups * sum(self.rows_per_group.values())

    def num_rows(self, role: str) -> int:
        """Return the number of rows of one role."""
        return self.groups * self.rows_per_group[role]

    def index(self, role: str) -> Tensor:
        """Return which rows are a role's, int64 [num_rows(role)], in the order in which `split` hands them out."""
        return self.split(torch.arange(self.total_rows))[role]

    def split(self, tensor: Tensor, dim: int = 0, block: int = 1) -> dict[str, Tensor]:
        """Divide a weight [rows, in], a bias [rows], scales of rows or of blocks: whatever follows the rows.

        Args:
            tensor: Any dtype; `total_rows / block` entries along `dim`.
            dim: The dim that follows the rows.
            block: Rows for which one entry stands: 128 for the scales of blocks of 128 x 128.

        Returns:
            {role: its entries along `dim`}, views where there is one group.

        Raises:
            ShapeError: the tensor has another number of entries, or a block holds rows of two segments.
        """
        sizes = self._entries(block)
        expected = self.groups * sum(sizes)
        found = _length(tensor, dim)
        if found != expected:
            raise ShapeError(
                f"a tensor of shape {list(tensor.shape)} has {found} entries along dim {dim}, "
                f"{self.total_rows} rows in blocks of {block} need {expected}: pass the dim and the block that it has"
            )
        dim %= tensor.ndim
        parts = torch.split_with_sizes(torch.unflatten(tensor, dim, (self.groups, -1)), sizes, dim + 1)
        return {
            role: part.flatten(dim, dim + 1) for role, part in zip(self.rows_per_group, parts, strict=True)
        }

    def join(self, parts: Mapping[str, Tensor], dim: int = 0, block: int = 1) -> Tensor:
        """Undo `split`: put the parts of all roles back in the order of the parameter's rows.

        Raises:
            ShapeError: a role is missing or unknown, or has another number of entries along `dim` than `split` gives.
        """
        expected = {
            role: self.groups * size
            for role, size in zip(self.rows_per_group, self._entries(block), strict=True)
        }
        found = {role: _length(part, dim) for role, part in parts.items()}
        if found != expected:
            raise ShapeError(
                f"entries along dim {dim} are {found}, {self.total_rows} rows in blocks of {block} need {expected}"
            )
        dim %= next(iter(parts.values())).ndim
        grouped = [torch.unflatten(parts[role], dim, (self.groups, -1)) for role in self.rows_per_group]
        return torch.cat(grouped, dim + 1).flatten(dim, dim + 1)

    def _entries(self, block: int) -> list[int]:
        """Return how many blocks each role has in a group."""
        cut = {role: rows for role, rows in self.rows_per_group.items() if rows % block}
        if cut:
            raise ShapeError(
                f"blocks of {block} rows hold rows of two segments: {self.groups} times {dict(self.rows_per_group)} "
                f"rows lie together, and {cut} are no multiple of {block}"
            )
        return [rows // block for rows in self.rows_per_group.values()]


def _length(tensor: Tensor, dim: int) -> int:
    """Return the entries along `dim`: one where there is no such dim, as in a whole tensor's scale []."""
    return tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else 1
