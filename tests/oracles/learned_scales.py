"""The gradients of scales by learned step size quantization (arXiv:1902.08153), in float64 numpy.

Shares no code with octavo. A rounded value is ``code · step``; seen as a function of the step it is
``step · (clip(x / step) + (code - clip(x / step)))`` with the bracket's difference held fixed where the value is in
range, so that its derivative is ``code - x / step`` there and ``code`` where it saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oracles.number_formats import (
    block_amax,
    grid_values,
    round_nearest,
    scale_shape,
    scales_from_amax,
    spread,
)

Float64 = NDArray[np.float64]


def state_gradients(
    grad: ArrayLike, x: ArrayLike, spec: Mapping[str, Any], amax: Any = None, global_amax: Any = None
) -> dict[str, Float64]:
    """Return the gradients of `amax` and, for two-level scales, `global_amax`, where the spec has them."""
    x = np.asarray(x, dtype=np.float32)
    where = spec["granularity"]
    amax = block_amax(x, where) if spec["dynamic"] else np.asarray(amax, dtype=np.float32)
    scales = scales_from_amax(amax, global_amax, spec)
    values = grid_values(spec["element"])
    step = spread(scales.step, where, x.shape).astype(np.float64)
    steps = (
        x / step if scales.factor is None else (x * spread(scales.factor, where, x.shape)).astype(np.float64)
    )
    inside = (steps >= values[0] * (1 + 2.0**-20)) & (steps <= values[-1] * (1 + 2.0**-20))
    if global_amax is not None:
        inside |= np.abs(x) <= np.minimum(spread(amax, where, x.shape), np.float32(global_amax))
    codes = round_nearest(steps, spec["element"])
    per_step = _block_sums(
        np.asarray(grad, np.float64) * (codes - np.where(inside, steps, 0)), where, x.shape
    )
    largest = values[-1]
    if global_amax is None:
        return {"amax": per_step / largest}
    whole = float(global_amax) / spec["global_max"]
    ratio = np.asarray(amax, np.float64) / (largest * whole)
    free = (ratio >= 2.0**-9) & (ratio <= 448 * (1 + 2.0**-20))
    stored = np.asarray(scales.step, np.float64) / whole
    per_whole = (per_step * (stored - np.where(free, ratio, 0))).sum()
    grads = {"global_amax": np.asarray(per_whole / spec["global_max"])}
    if not spec["dynamic"]:
        grads["amax"] = np.where(free, per_step / largest, 0)
    return grads


def _block_sums(values: Float64, granularity: Mapping[str, Any], shape: tuple[int, ...]) -> Float64:
    blocks = scale_shape(granularity, shape)
    numbers = np.arange(int(np.prod(blocks)), dtype=np.float32).reshape(blocks)
    owner = np.broadcast_to(spread(numbers, granularity, shape), shape).astype(np.int64)
    return np.bincount(owner.ravel(), values.ravel(), minlength=numbers.size).reshape(blocks)
