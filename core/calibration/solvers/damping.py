"""A Gram matrix made positive definite, and factored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from octavo.core.errors import CalibrationError

_LARGEST = 1e3


class Feedback(NamedTuple):
    """How the error of one column is made good by later ones.

    Attributes:
        factor: fp32 [in, in], upper triangular, U with U^T·U the inverse of the damped Gram matrix.
        damping: What was added to the diagonal, as a fraction of its mean.
        num_dead: Columns whose input was always zero; they take no part.
    """

    factor: Tensor
    damping: float
    num_dead: int


def feedback(gram: Tensor, damping: float) -> Feedback:
    """Factor a Gram matrix for GPTQ, with ten times the damping for as long as it is not positive definite.

    Args:
        gram: fp32 [in, in], in the order in which columns are rounded.
        damping: Fraction of the diagonal's mean that is added to it.

    Raises:
        CalibrationError: the matrix is not finite, or no damping helps.
    """
    if not gram.isfinite().all():
        raise CalibrationError(
            "a Gram matrix has entries that are not finite; look for inf or NaN in the calibration data"
        )
    diagonal = gram.diagonal()
    dead = diagonal <= 0
    mean = float(diagonal.mean()) if not dead.all() else 1.0
    used = damping
    while used <= _LARGEST:
        damped = gram.clone()
        damped.diagonal().add_(used * mean)
        damped.diagonal()[dead] = mean
        # Cholesky of the matrix read backwards gives damped = R·R^T with R upper triangular; then U is R^-1.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            identity = torch.eye(len(gram), device=gram.device)
            inverse = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return Feedback(inverse, used, int(dead.sum()))
        used = max(10 * used, 1e-6)
    raise CalibrationError(
        f"a Gram matrix [{len(gram)}, {len(gram)}] is not positive definite, even with damping {_LARGEST:g}; "
        "it is no product X^T·X"
    )
