"""Freezing the statistics of batch norms late in training, so that the last steps see what serving computes with.

As in Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv:1806.08342, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


def freeze_batch_norms(model: nn.Module) -> Sequence[RemovableHandle]:
    """Keep every batch norm of `model` in eval mode, whatever `model.train()` says, until the handles are removed."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm.register_forward_pre_hook(_evaluate) for norm in norms]


def _evaluate(norm: nn.Module, args: Any) -> None:
    norm.eval()
