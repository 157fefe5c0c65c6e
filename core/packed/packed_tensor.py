"""PackedTensor: one quantized tensor as codes, scales and format, in memory and on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.core import ops
from octavo.core.errors import CheckpointError
from octavo.core.formats import Quantized, QuantSpec
from octavo.core.formats.packing import packed_length
from octavo.core.formats.scales import SCALE_DTYPES

_PARTS = ("payload", "scale", "global_scale")


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A quantized tensor: ``value ≈ code · scale [· global scale]``.

    The codes are row-major and packed along the last (input) dim, so that a row shard cuts no byte. Dialects
    that store something else repack when they write. `==` compares identity.

    Attributes:
        payload: uint8 [..., ⌈n·bits/8⌉].
        scale: Stored first-level scales (float32, float8_e4m3fn, or uint8 exponents for e8m0).
        global_scale: fp32 [] second-level scale, [n] for n stacked tensors, or None.
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

    def squared_error(self, x: Tensor) -> Tensor:
        """Return the sums of squares of `x`, of this shape, and of the errors (`formats.squared_error.run_sums`)."""
        return ops.squared_error(x, Quantized(self.payload, self.scale, self.global_scale), self.spec)

    def one_of_stack(self, index: int) -> PackedTensor:
        """Return one of stacked tensors, as views."""
        second = None if self.global_scale is None else self.global_scale[index]
        parts = (self.payload[index], self.scale[index], second)
        return PackedTensor(*parts, self.spec.unstacked(), self.shape[1:], self.dtype)

    def row_segment(self, segment: int, num_segments: int) -> PackedTensor | None:
        """Return one of equal segments along the first dim, as views; None where a block would be cut.

        Scales of the whole tensor, and a block that spans all rows, belong to every segment.
        """
        rows = self.shape[0] // num_segments
        scale_rows = self.scale.shape[0] if self.scale.dim() else 1
        if self.shape[0] % num_segments or (scale_rows > 1 and scale_rows % num_segments):
            return None
        scale = self.scale if scale_rows == 1 else self.scale.chunk(num_segments)[segment]
        payload = self.payload.chunk(num_segments)[segment]
        return replace(self, payload=payload, scale=scale, shape=(rows, *self.shape[1:]))

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
            CheckpointError: a part is missing, its dtype or shape does not fit, or the description is damaged.
            ConfigError: the description names a format that does not exist.
        """
        spec, shape, dtype = _read_description(description)
        needed = _PARTS if spec.global_max is not None else _PARTS[:2]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise CheckpointError(f"packed tensor {spec} of shape {shape} lacks {', '.join(missing)}")
        global_scale = tensors["global_scale"] if "global_scale" in needed else None
        packed = cls(tensors["payload"], tensors["scale"], global_scale, spec, shape, dtype)
        packed.check()
        return packed

    def check(self) -> None:
        """Check that the parts fit the format and the shape.

        Raises:
            CheckpointError: a part has another dtype or shape than codes or scales of this tensor have.
        """
        length = packed_length(self.shape[-1], self.spec.element_type.bits)
        self._check_part("payload", self.payload, torch.uint8, (*self.shape[:-1], length))
        scale_shape = self.spec.granularity.scale_shape(self.shape)
        self._check_part("scale", self.scale, SCALE_DTYPES[self.spec.scale], scale_shape)
        if self.global_scale is not None:
            shape = self.spec.state_shape("global_amax", self.shape)
            self._check_part("global_scale", self.global_scale, torch.float32, shape)

    def _check_part(self, name: str, part: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        where = f"{name} of a tensor {self.shape} packed as {self.spec}"
        if tuple(part.shape) != shape:
            raise CheckpointError(f"{where} has shape {shape}, found {tuple(part.shape)}")
        if part.dtype != dtype:
            raise CheckpointError(f"{where} has dtype {dtype}, found {part.dtype}")


def _read_description(description: Mapping[str, Any]) -> tuple[QuantSpec, tuple[int, ...], torch.dtype]:
    missing = [name for name in ("spec", "shape", "dtype") if name not in description]
    if missing:
        raise CheckpointError(
            f"the description of a packed tensor lacks {', '.join(missing)}, found {sorted(description)}"
        )
    shape, dtype = description["shape"], getattr(torch, str(description["dtype"]), None)
    if not (isinstance(shape, list) and shape and all(isinstance(length, int) for length in shape)):
        raise CheckpointError(
            f"shape of a packed tensor must be a list of one length or more, found {shape!r}"
        )
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(
            f"dtype of a packed tensor must name a float dtype of torch, found {description['dtype']!r}"
        )
    return QuantSpec.from_json(description["spec"]), tuple(shape), dtype
