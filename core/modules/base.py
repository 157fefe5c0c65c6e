"""QuantModule: the mixin that makes a layer class a quantized layer class."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from octavo.core.quantizers import Quantizer


class QuantModule(nn.Module):
    """Mixin of every quantized layer class.

    A quantized class is a subclass of the layer it stands for, or a mixin for several layer classes, whose
    `forward` says explicitly where its quantizers act. Layers become quantized by having their class swapped; there
    is no `__init__`, and every parameter, buffer, hook and attribute stays.

    Attributes:
        quantizer_names: Submodules that hold the quantizers, created by the swap.
        weight_is_transposed: Whether the layer holds its weight as [in, out]. Its quantizers see [out, in], and
            checkpoints store that.
    """

    quantizer_names: ClassVar[tuple[str, ...]] = ()
    weight_is_transposed: ClassVar[bool] = False

    @classmethod
    def quantizer_shape(cls, layer: nn.Module, quantizer: str) -> tuple[int, ...] | None:
        """Return the shape of the tensor that `quantizer` of `layer` sees, with 0 for dims that vary.

        None stands for an unknown shape. The plan calls this on the layer before its class is swapped.
        """
        return None

    def quantized_weights(self) -> dict[str, Tensor]:
        """Return the parameters that quantizers of this layer stand for, by quantizer name."""
        return {}

    def quantizers(self) -> dict[str, Quantizer]:
        """Return this layer's quantizers by name."""
        return {name: getattr(self, name) for name in self.quantizer_names}
