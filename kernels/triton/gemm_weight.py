"""A packed weight whose parts fit each other, so that no kernel reads beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.formats import parse_chain
from octavo.core.formats.packing import packed_length
from octavo.core.formats.scales import SCALE_DTYPES
from octavo.kernels.triton.gemm_formats import WeightFormat, weight_format

_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Weight:
    """A packed weight [out, in], or experts × out × in ones, ready for a kernel.

    Attributes:
        form: Its format.
        payload: Units of codes [experts · out, units of a row], contiguous: bytes (uint8), or words (int32), which
            take fewer instructions.
        scale: fp32, or uint8 bits, contiguous.
        global_scale: fp32 [experts], or None.
        num_experts: 1 if it is not stacked.
        num_out: Rows of each.
        num_in: Columns.
        dtype: To which its values are rounded.
    """

    form: WeightFormat
    payload: Tensor
    scale: Tensor
    global_scale: Tensor | None
    num_experts: int
    num_out: int
    num_in: int
    dtype: torch.dtype

    @property
    def per_unit(self) -> int:
        """Codes in a unit of the payload."""
        return 8 * self.payload.element_size() // self.form.numbers.bits

    @property
    def converts_fp8(self) -> bool:
        """Whether its codes are e4m3 and the device converts them itself."""
        return self.form.numbers.element == "e4m3" and has_fp8(self.payload.device)

    @property
    def scale_rows(self) -> int:
        """Rows of the grid of scales of each expert."""
        return math.ceil(self.num_out / self.form.rows_per_scale) if self.form.rows_per_scale else 1

    @property
    def scale_columns(self) -> int:
        """Columns of the grid of scales."""
        return math.ceil(self.num_in / self.form.columns_per_scale) if self.form.columns_per_scale else 1


def read_weight(
    payload: Tensor,
    scale: Tensor,
    global_scale: Tensor | None,
    key: str,
    num_in: int,
    dtype: torch.dtype,
) -> Weight | None:
    """Return the weight of `num_in` columns that these are the parts of (see `PackedTensor`).

    None where products do not read the format, or a part does not fit; the reference says what is wrong with it.
    """
    form = weight_format(key)
    if isinstance(form, str) or payload.dim() not in (2, 3):
        return None
    (spec,) = parse_chain(key)
    shape = (*payload.shape[:-1], num_in)
    expected: list[tuple[Tensor | None, torch.dtype, tuple[int, ...]]] = [
        (payload, torch.uint8, (*shape[:-1], packed_length(num_in, form.numbers.bits))),
        (scale, SCALE_DTYPES[spec.scale], spec.granularity.scale_shape(shape)),
    ]
    if spec.global_max is not None:
        expected.append((global_scale, torch.float32, spec.state_shape("global_amax", shape)))
    elif global_scale is not None:
        return None
    if spec.is_stacked != (len(shape) == 3) or not all(_fits(*part, payload.device) for part in expected):
        return None
    stored = scale.contiguous()
    return Weight(
        form,
        _units(payload.contiguous(), form),
        stored if stored.dtype == torch.float32 else stored.view(torch.uint8),
        None if global_scale is None else global_scale.contiguous(),
        shape[0] if len(shape) == 3 else 1,
        shape[-2],
        num_in,
        dtype,
    )


def has_fp8(device: torch.device) -> bool:
    """Return whether a device has instructions for e4m3."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def _units(payload: Tensor, form: WeightFormat) -> Tensor:
    """Return a contiguous payload as words where rows are whole ones, but for bytes that the device converts."""
    is_whole = payload.numel() > 0 and payload.shape[-1] % 4 == 0 and payload.data_ptr() % 4 == 0
    is_converted = form.numbers.element == "e4m3" and has_fp8(payload.device)
    return payload.view(torch.int32) if is_whole and not is_converted else payload


def _fits(part: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> bool:
    return part is not None and (part.dtype, tuple(part.shape), part.device) == (dtype, shape, device)
