"""How norms use their weights is seen in what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm

from octavo.core.calibration.norm_kind import norm_kind


class Gated(nn.Module):
    """Takes a second tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate * self.weight


class Scaled(Gated):
    """Adds something of its own."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return x * self.weight + 3


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.LayerNorm(8), "weight"),
        (nn.RMSNorm(8), "weight"),
        (LlamaRMSNorm(8), "weight"),
        (GemmaRMSNorm(8), "one plus weight"),
        (Qwen3NextRMSNorm(8), "one plus weight"),
        (Gated(), None),
        (Scaled(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_kinds(norm: nn.Module, kind: str | None) -> None:
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}

    assert norm_kind(norm.to(torch.bfloat16)) == kind
    assert all(torch.equal(norm.state_dict()[name].float(), tensor) for name, tensor in before.items())
