"""What a layout of INT checkpoints is: what config.json says of it, and how it unpacks a layer's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from octavo.core.formats import Granularity, PerBlock, PerChannel, QuantSpec
from octavo.core.model.exporter import LayerFormat


class Unpacked(NamedTuple):
    """A layer's weight as unsigned integers.

    Attributes:
        codes: uint8 [out, in].
        scale: [out, groups], as stored.
        zero_point: uint8 [out, groups]: the code that stands for 0.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class IntegerFormat:
    """The one format of a checkpoint's quantized layers.

    Attributes:
        bits: Of a code.
        group_size: Inputs that share a scale; None where each output channel has one.
        is_symmetric: Whether every zero point is the middle of the codes.
    """

    bits: int
    group_size: int | None
    is_symmetric: bool

    @property
    def layer(self) -> LayerFormat:
        """The same in neutral terms."""
        granularity: Granularity = (
            PerChannel(0) if self.group_size is None else PerBlock(((-1, self.group_size),))
        )
        element = f"int{self.bits}" if self.is_symmetric else f"uint{self.bits}"
        weight = QuantSpec(element, granularity, arithmetic="divide")
        return LayerFormat(weight, None, zero_points=not self.is_symmetric)


class Layout(Protocol):
    """How a tool lays out the tensors of a quantized linear layer.

    Attributes:
        name: The tool's, in messages.
        format: Format of the quantized layers.
        parts: Suffixes of a layer's tensors, `qweight` first.
        optional: Those that may be missing.
    """

    name: str
    format: IntegerFormat
    parts: tuple[str, ...]
    optional: tuple[str, ...]

    def unpack(self, tensors: Mapping[str, Tensor], where: str) -> Unpacked:
        """Return a layer's weight.

        Raises:
            CheckpointError: dtypes or shapes do not fit, or the layer has something that is not read.
        """
