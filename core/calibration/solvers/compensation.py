"""A weight that makes up, before it is rounded, for what rounding did to its input.

The layer will see Y, the rounded input in the quantized model, where it saw X. The least of ‖Y · W'ᵀ − X · Wᵀ‖² is at
W' = W · XᵀY · (YᵀY)⁻¹. GPTQ then rounds W' with the Gram matrix YᵀY.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compensated(
    weight: Tensor, cross: Tensor, gram: Tensor, share: float = 0.5, damping: float = 0.01
) -> Tensor:
    """Return the weight [out, in], fp32, that goes `share` of the way to the least-squares one.

    All of the way is the least output error of the layer. It also shrinks the output, as regression on noisy inputs
    does, which adds up over layers: half of the way leaves the smaller divergence of whole models.

    Args:
        weight: [out, in], any float dtype.
        cross: fp32 [in, in], XᵀY: inputs of the model before quantizing, times the rounded inputs of the same tokens.
        gram: fp32 [in, in], YᵀY.
        share: 0 (nothing changes) to 1.
        damping: Part of the mean diagonal of `gram` that is added to its diagonal: directions with less input than
            this are left as they are.
    """
    ridge = gram.diagonal().mean() * damping
    if ridge == 0:
        return weight.float()
    damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    change = torch.cholesky_solve((weight.float() @ (cross - gram)).T, torch.linalg.cholesky(damped)).T
    return weight.float() + share * change
