"""Where a model's parameters are in its framework's checkpoints: one tensor each, or a stack taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Parts = tuple[tuple[str, ...], ...]
"""For each index along a parameter's first dim, the checkpoint names of its equal row segments."""


@dataclass(frozen=True)
class CheckpointLayout:
    """Names of a model's parameters in checkpoints.

    Attributes:
        names: {parameter: checkpoint name}.
        parts: {parameter that a checkpoint takes apart: names of its parts}.
    """

    names: Mapping[str, str]
    parts: Mapping[str, Parts] = field(default_factory=dict)

    def places(self) -> dict[str, Place]:
        """Return where every tensor of a checkpoint is in the model."""
        whole = {new: Place(own) for own, new in self.names.items()}
        stacked = {
            name: Place(own, index, segment, len(segments))
            for own, parts in self.parts.items()
            for index, segments in enumerate(parts)
            for segment, name in enumerate(segments)
        }
        return whole | stacked


@dataclass(frozen=True)
class Place:
    """The part of a parameter that a checkpoint's tensor holds.

    Attributes:
        name: The parameter.
        index: Index along its first dim, or None for the whole parameter.
        segment: Which of `num_segments` equal row segments.
        num_segments: Number of these.
    """

    name: str
    index: int | None = None
    segment: int = 0
    num_segments: int = 1

    def of(self, parameter: Tensor) -> Tensor:
        """Return that part of `parameter`, as a view."""
        return (
            parameter
            if self.index is None
            else row_segment(parameter[self.index], self.segment, self.num_segments)
        )


def row_segment(tensor: Tensor, segment: int, num_segments: int) -> Tensor:
    """Return one of equal segments along the first dim; a number without dims belongs to all of them."""
    return tensor.chunk(num_segments)[segment] if tensor.dim() else tensor
