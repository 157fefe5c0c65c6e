"""Linear layers that are never called: torch's fused modules read their weights and multiply themselves."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def fused_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers of `model` that a quantized class would not reach, with the reason.

    `nn.MultiheadAttention` never calls its `out_proj`, which torch marks by its class. `nn.TransformerEncoderLayer`
    does not call its linear layers and norms in its fused path, which it takes in eval mode without gradients.
    """
    fused: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, NonDynamicallyQuantizableLinear):
            fused[module] = "its owner (nn.MultiheadAttention) multiplies with its weight and never calls it"
        elif (
            isinstance(module, nn.TransformerEncoderLayer)
            and type(module).forward is nn.TransformerEncoderLayer.forward
        ):
            reason = "nn.TransformerEncoderLayer multiplies with its weight in eval mode, without calling it"
            fused |= dict.fromkeys((module.linear1, module.linear2, module.norm1, module.norm2), reason)
    return fused
