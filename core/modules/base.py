"""QuantModule: the mixin that makes a layer class a quantized layer class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from octavo.core.modules.packed_parameter import PackedParameter, packed_name
from octavo.core.quantizers import Quantizer


@dataclass(frozen=True)
class WeightSlot:
    """A parameter that a quantizer of a layer stands for, and the quantizer of what it is multiplied with.

    Attributes:
        quantizer: Name of the weight's quantizer.
        parameter: Name of the parameter.
        inputs: Name of the input's quantizer.
        is_stacked: The parameter is a stack of independent weights, along its first dim.
    """

    quantizer: str = "weight_quantizer"
    parameter: str = "weight"
    inputs: str = "input_quantizer"
    is_stacked: bool = False


class QuantModule(nn.Module):
    """Mixin of every quantized layer class.

    A quantized class is a subclass of the layer it stands for, or a mixin for several layer classes, whose
    `forward` says explicitly where its quantizers act. Layers become quantized by having their class swapped; there
    is no `__init__`, and every parameter, buffer, hook and attribute stays.

    Attributes:
        quantizer_names: Submodules that hold the quantizers, created by the swap.
        on_demand: Those of them that a layer has only once they are given a format.
        own_attributes: What quantized layers of this class keep on the instance; gone when they are swapped back.
        weight_is_transposed: Whether the layer holds its weight as [in, out]. Its quantizers see [out, in], and
            checkpoints store that.
        packed_parameters: Parameters that the layer holds packed (see `packed_layer`).
    """

    quantizer_names: ClassVar[tuple[str, ...]] = ()
    on_demand: ClassVar[tuple[str, ...]] = ()
    own_attributes: ClassVar[tuple[str, ...]] = ()
    weight_is_transposed: ClassVar[bool] = False
    packed_parameters: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def weight_slots(cls) -> tuple[WeightSlot, ...]:
        """Return the parameters that quantizers stand for: `weight`, where there is a `weight_quantizer`."""
        return (WeightSlot(),) if WeightSlot().quantizer in cls.quantizer_names else ()

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` of `layer` sees, with 0 for dims that vary.

        None stands for an unknown shape. The plan calls this on the layer before its class is swapped.
        """
        return None

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the parameters that quantizers of this layer stand for, by quantizer name."""
        return {}

    def held(self, parameter: str) -> Tensor | PackedParameter:
        """Return a parameter in the form in which the layer holds it: dense, or codes and scales."""
        name = packed_name(parameter) if parameter in self.packed_parameters else parameter
        found: Tensor | PackedParameter = getattr(self, name)
        return found

    def quantizers(self) -> dict[str, Quantizer]:
        """Return this layer's quantizers by name."""
        names = (name for name in self.quantizer_names if name not in self.on_demand or hasattr(self, name))
        return {name: getattr(self, name) for name in names}

    @classmethod
    def constant_names(cls) -> tuple[str, ...]:
        """Return the names of the quantizers that every layer of this class has, on or off."""
        return tuple(name for name in cls.quantizer_names if name not in cls.on_demand)
