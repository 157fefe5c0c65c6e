"""A weight that makes good what earlier layers' quantization changed (asymmetric calibration, arXiv:2504.02692)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.calibration.solvers.damping import feedback


@torch.no_grad()
def compensated(
    weight: Tensor, gram: Tensor, missing: Tensor, *, damping: float = 0.01, share: float = 1.0
) -> Tensor:
    """Return the real weight whose output on the changed input is nearest to the output that is wanted.

    It is to be rounded with the same Gram matrix. For a layer whose output should be that of the unquantized model,
    `missing` is X^T·(X0 − X)·W^T with X0 the input without quantization; a layer that writes to the residual stream
    can make good the stream's error too, which is then added to (X0 − X)·W^T.

    Args:
        weight: fp32 [out, in].
        gram: X^T·X of the input from quantized layers, fp32 [in, in].
        missing: X^T·D, fp32 [in, out], in the units of `gram`: D is what the output of `weight` on X lacks.
        damping: Fraction of the Gram matrix's mean diagonal that is added to it: how firmly `weight` is kept.
        share: How far to go, 0 (nothing changes) to 1 (all of the way). Where X is rounded itself, half of the way
            left the smaller divergence of whole models.

    Raises:
        CalibrationError: the matrix is not finite, or not positive definite with any damping.
    """
    factor = feedback(gram, damping).factor
    return weight + share * (missing.T @ factor.T @ factor)
