"""Where the compiled code finds the largest magnitudes that scales come from, and puts what it computes of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.formats import QuantSpec
from octavo.core.formats.scales import SCALE_DTYPES, global_scale_from_amax
from octavo.kernels.cpu.format import CFormat, format_of
from octavo.kernels.cpu.layout import Layout
from octavo.kernels.cpu.memory import empty


class CScaling(ctypes.Structure):
    """`Scaling` of elementwise.h."""

    _fields_ = (
        ("format", ctypes.POINTER(CFormat)),
        *((name, ctypes.c_void_p) for name in ("amax", "global_scale", "global_amax")),
        *((name, ctypes.c_int64) for name in ("num_scales", "scales_per_global")),
        *((name, ctypes.c_void_p) for name in ("factors", "stored")),
    )


@dataclass(frozen=True, eq=False)
class Scaling:
    """The scales of one tensor.

    Attributes:
        compiled: The same for the compiled code; its pointers are those of `tensors`.
        stored: First-level scales as `formats.Scales.stored`, written by the compiled code; None if not asked for.
        global_scale: fp32 [] or [n], or None.
        tensors: What must live as long as the pointers.
    """

    compiled: CScaling
    stored: Tensor | None
    global_scale: Tensor | None
    tensors: Sequence[Tensor | None]


def scaling_of(
    spec: QuantSpec,
    layout: Layout,
    amax: Tensor | None,
    global_amax: Tensor | None,
    stored_shape: Sequence[int] | None = None,
) -> Scaling:
    """Return the scales for blocks of magnitudes `amax`; None for those of the values, block by block.

    Args:
        spec: The format.
        layout: Of the tensor.
        amax: fp32, one for each block, or None.
        global_amax: fp32 [] or [n], where the spec has two levels.
        stored_shape: The shape of the scales, where they are to be stored.
    """
    global_scale = None if global_amax is None else global_scale_from_amax(global_amax, spec).contiguous()
    stored = None if stored_shape is None else empty(stored_shape, SCALE_DTYPES[spec.scale])
    factors = None if amax is None else empty((3 * layout.num_scales,), torch.float32)
    amax = None if amax is None else amax.contiguous()
    global_amax = None if global_amax is None else global_amax.contiguous()
    num_globals = 1 if global_amax is None else layout.num_stacked
    compiled = CScaling(
        ctypes.pointer(format_of(spec)),
        _pointer(amax),
        _pointer(global_scale),
        _pointer(global_amax),
        layout.num_scales,
        layout.num_scales // num_globals,
        _pointer(factors),
        _pointer(stored),
    )
    return Scaling(compiled, stored, global_scale, (amax, global_amax, factors))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
