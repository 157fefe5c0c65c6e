"""XᵀX summed up over parts of X: the upper half, at little more than half the cost, and the lower half from it."""

from __future__ import annotations

from torch import Tensor

_WIDTH = 256  # columns at a time; what lies below the diagonal inside one is computed in vain


def add_upper(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX to `total` [in, in] in place, on and above the diagonal; below it, only some.

    Args:
        total: fp32.
        rows: X, fp32 [n, in].
    """
    for start in range(0, len(total), _WIDTH):
        columns = slice(start, start + _WIDTH)
        total[columns, start:].addmm_(rows[:, columns].T, rows[:, start:])


def copy_upper(total: Tensor) -> None:
    """Make `total` [in, in] symmetric in place, by what is on and above the diagonal."""
    for start in range(0, len(total), _WIDTH):
        stop = start + _WIDTH
        total[stop:, start:stop] = total[start:stop, stop:].T
