"""PackedParameter: the codes and scales that a layer holds in place of a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core import ops
from octavo.core.errors import CheckpointError
from octavo.core.formats import Quantized, QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.formats.scales import SCALE_DTYPES
from octavo.core.modes.record import part
from octavo.core.packed import PackedTensor
from octavo.core.packed.stored_bytes import from_bytes, to_bytes


class PackedParameter(nn.Module):
    """Codes and scales of one weight, as frozen uint8 parameters; what is one number, as a uint8 buffer.

    Bytes, also of the scales, since everything that wraps modules leaves bytes alone: mixed precision of FSDP2 and
    ZeRO-3 would round float scales, `.to(dtype)` would convert them, and gloo does not carry 8-bit floats. A buffer,
    since FSDP2 would cut the bytes of a single number in two.

    Attributes:
        payload: uint8 [..., out, ⌈in·bits/8⌉], codes packed along the input dim.
        scale: uint8 [*scale shape, bytes of a scale].
        global_scale: uint8 [4], or [n, 4] of n stacked weights: the fp32 second-level scale; None where there is none.
        spec: The format.
        shape: Shape [..., out, in] of the weight, the way round in which its quantizer sees it.
        dtype: Dtype of the weight's values.
        is_transposed: Whether the dense parameter is [..., in, out].
        sqnr: Signal-to-quantization-noise ratio in dB of the weight, or of each of the stack, when it was packed (None
            where nothing was lost): the original values, which it was measured against, are gone.
    """

    payload: nn.Parameter
    scale: Tensor
    global_scale: Tensor | None

    def __init__(
        self, packed: PackedTensor, is_transposed: bool = False, sqnr: Sequence[float | None] = ()
    ) -> None:
        super().__init__()
        self.spec, self.shape, self.dtype = packed.spec, packed.shape, packed.dtype
        self.is_transposed, self.sqnr = is_transposed, tuple(sqnr)
        self.payload = _frozen(packed.payload)
        self._hold("scale", packed.scale)
        self._hold("global_scale", packed.global_scale)

    def _hold(self, name: str, scale: Tensor | None) -> None:
        if scale is None or scale.dim():
            self.register_parameter(name, None if scale is None else _frozen(to_bytes(scale)))
        else:
            self.register_buffer(name, to_bytes(scale).clone())

    def quantized(self) -> Quantized:
        """Return codes and scales in the dtypes that the operators take."""
        parts: dict[str, Any] = {
            **self._parameters,
            **self._buffers,
        }  # for every token: faster than attributes
        scale, second = parts["scale"], parts["global_scale"]
        second = None if second is None else from_bytes(second, torch.float32)
        return Quantized(parts["payload"], from_bytes(scale, SCALE_DTYPES[self.spec.scale]), second)

    def tensor(self) -> PackedTensor:
        """Return codes, scales and format, detached."""
        payload, scale, second = self.quantized()
        second = None if second is None else second.detach()
        return PackedTensor(payload.detach(), scale.detach(), second, self.spec, self.shape, self.dtype)

    def dequantize(self) -> Tensor:
        """Return the values that the codes stand for, of `shape` and `dtype`."""
        return ops.dequantize(self.quantized(), self.spec, self.shape, self.dtype)

    def placeholder(self) -> nn.Parameter:
        """Return a parameter of the dense one's shape and dtype on the meta device, without values."""
        empty = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return nn.Parameter(empty.transpose(-1, -2) if self.is_transposed else empty, requires_grad=False)

    def describe(self) -> dict[str, Any]:
        """Return all but the tensors as JSON-ready data, which `from_description` reads."""
        return {
            "spec": self.spec.to_json(),
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "is_transposed": self.is_transposed,
            "sqnr": list(self.sqnr),
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any], device: torch.device, where: str) -> PackedParameter:
        """Return room for the tensors of a weight that `describe` described; they are not set.

        Raises:
            CheckpointError: a part of the description is missing or wrong; it is named.
            ConfigError: the format does not exist.
        """
        spec = QuantSpec.from_json(part(data, "spec", dict, where))
        shape, name = tuple(part(data, "shape", list, where)), part(data, "dtype", str, where)
        dtype = getattr(torch, name, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise CheckpointError(f"{where}: dtype must name a float dtype of torch, found {name!r}")
        payload = (*shape[:-1], packed_length(shape[-1], spec.element_type.bits))
        packed = PackedTensor(
            torch.empty(payload, dtype=torch.uint8, device=device),
            torch.empty(spec.granularity.scale_shape(shape), dtype=SCALE_DTYPES[spec.scale], device=device),
            None
            if spec.global_max is None
            else torch.empty(spec.state_shape("global_amax", shape), device=device, dtype=torch.float32),
            spec,
            shape,
            dtype,
        )
        return cls(packed, part(data, "is_transposed", bool, where), part(data, "sqnr", list, where))

    @property
    def num_bytes(self) -> int:
        """Bytes that codes and scales take."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def extra_repr(self) -> str:
        """Describe format and shape for `print(model)`."""
        return f"{self.spec}, {list(self.shape)}, {str(self.dtype).removeprefix('torch.')}"


def packed_name(parameter: str) -> str:
    """Return the name of the submodule that stands for a parameter.

    With an underscore, as quantizers of raw parameters have: frameworks' renaming would catch a dot.
    """
    return f"{parameter}_packed"


def dense(held: Tensor | PackedParameter) -> Tensor:
    """Return a weight's values, whichever way a layer holds it."""
    return held.dequantize() if isinstance(held, PackedParameter) else held


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
