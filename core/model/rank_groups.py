"""RankGroups: which ranks of a distributed run see parts of the tensor that a quantizer sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from octavo.core.model.segments import RowSegments


@dataclass(frozen=True)
class RankGroups:
    """How a tensor's values are spread over ranks, beside those that have a copy of it.

    Attributes:
        samples: Groups whose ranks see the tensor for other samples (data and context parallelism).
        parts: Groups whose ranks see other parts of the tensor (tensor parallelism), each with the dim that is
            divided, counted from the end.
        siblings: Groups whose ranks have other experts beside the one whose input this is.
        num_dims: Number of dims of the tensor, by which formats' axes count.
        rows: What the rows of a fused weight are, where those of one role have one scale, on all ranks; such scales are
            one for each row. None where scales are shared by nothing but the format.
    """

    samples: tuple[ProcessGroup, ...] = ()
    parts: tuple[tuple[ProcessGroup, int], ...] = ()
    siblings: tuple[ProcessGroup, ...] = ()
    num_dims: int = 2
    rows: RowSegments | None = None

    @property
    def all(self) -> tuple[ProcessGroup, ...]:
        """The groups whose ranks together see every value."""
        return (*self.samples, *(group for group, _ in self.parts))

    def of_scales(self, spec: QuantSpec) -> tuple[ProcessGroup, ...]:
        """Return the groups whose ranks share the scales of a format.

        Every rank has the scales of its own part where they follow the divided dim, and shares them where they do not.
        """
        if self.rows is not None:
            return self.all
        shared = (group for group, dim in self.parts if not follows(spec, dim, self.num_dims))
        return (*self.samples, *shared)


def follows(spec: QuantSpec, dim: int, num_dims: int) -> bool:
    """Whether the scales of a tensor of `num_dims` dims are others at another place along `dim`, negative."""
    match spec.granularity:
        case PerTensor():
            return False
        case PerChannel(axis=axis):
            return (axis if axis < 0 else axis - num_dims) == dim
        case PerToken():
            return dim != -1
        case PerBlock():
            return True
    return True  # stacked tensors: none is divided
