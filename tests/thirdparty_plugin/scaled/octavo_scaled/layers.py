"""The framework: a layer with a gain, and a model of such layers. Knows nothing of Octavo."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class ScaledLinear(nn.Module):
    """`linear(x, weight) * gain`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight) * self.gain


class ScaledModel(nn.Module):
    """Two layers that read the same tensor, and one that reads their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.left, self.right, self.out = (ScaledLinear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out((self.left(x) + self.right(x)).relu())
        return y
