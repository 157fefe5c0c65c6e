"""PackedTensor: one quantized tensor as codes, scales and format, in memory and on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.errors import CheckpointError
from octavo.core.formats import Quantized, QuantSpec

_PARTS = ("payload", "scale", "global_scale")


@dataclass(frozen=True)
class PackedTensor:
    """A quantized tensor: ``value ≈ code · scale [· global scale]``.

    The codes are row-major and packed along the last (input) dim, so that a row shard cuts no byte. Dialects
    that store something else repack when they write.

    Attributes:
        payload: uint8 [..., ⌈n·bits/8⌉].
        scale: Stored first-level scales (float32, float8_e4m3fn, or uint8 exponents for e8m0).
        global_scale: fp32 [] second-level scale, or None.
        spec: The format.
        shape: Shape of the tensor it stands for.
        dtype: Dtype of the tensor it stands for.
    """

    payload: Tensor
    scale: Tensor
    global_scale: Tensor | None
    spec: QuantSpec
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def pack(cls, x: Tensor, state: Sequence[Tensor], spec: QuantSpec) -> PackedTensor:
        """Quantize `x`; `state` is as in `formats.fake_quantize`."""
        return cls(*ops.quantize(x, state, spec), spec, tuple(x.shape), x.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the values, in `dtype` or the original one."""
        parts = Quantized(self.payload, self.scale, self.global_scale)
        return ops.dequantize(parts, self.spec, self.shape, dtype or self.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes that codes and scales take."""
        parts = (self.payload, self.scale, self.global_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by part name, JSON-ready description) for storage; `from_parts` reads them."""
        tensors = {name: getattr(self, name) for name in _PARTS if getattr(self, name) is not None}
        description = {
            "spec": self.spec.to_json(),
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return tensors, description

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> PackedTensor:
        """Read what `to_parts` returned.

        Raises:
            CheckpointError: a part is missing or its shape does not fit.
        """
        spec, shape = QuantSpec.from_json(description["spec"]), tuple(description["shape"])
        needed = _PARTS if spec.global_max is not None else _PARTS[:2]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise CheckpointError(f"packed tensor {spec} of shape {shape} lacks {', '.join(missing)}")
        dtype = getattr(torch, description["dtype"])
        packed = cls(tensors["payload"], tensors["scale"], tensors.get("global_scale"), spec, shape, dtype)
        packed.check()
        return packed

    def check(self) -> None:
        """Check that the parts fit the shape.

        Raises:
            CheckpointError: a part has another shape than codes or scales of this tensor have.
        """
        expected = {
            "payload": (*self.shape[:-1], -(-self.shape[-1] * self.spec.element_type.bits // 8)),
            "scale": self.spec.granularity.scale_shape(self.shape),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise CheckpointError(
                    f"{name} of a tensor {self.shape} packed as {self.spec} has shape {shape}, found {found}"
                )
