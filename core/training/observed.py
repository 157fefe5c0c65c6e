"""Scales of activations that follow the training data: a running average of each step's largest magnitudes.

As in Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
arXiv:1712.05877, section 3.1. Statistics change once per step, between steps, so that recomputed activations
(checkpointing) see the scales that they had.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.calibration.collectors import AmaxCollector
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.world import largest_of_all

MOMENTUM = 0.95


class ActivationObserver:
    """Watches quantizers in training mode, and moves their scales when a step is finished."""

    def __init__(self, quantizers: Sequence[TensorQuantizer]) -> None:
        self._seen = {quantizer: _StepMaximum(quantizer) for quantizer in quantizers}

    @torch.no_grad()
    def update(self) -> None:
        """Move each scale by a share of the way to the largest magnitudes of this step, of all ranks."""
        for quantizer, maximum in self._seen.items():
            state = maximum.take()
            if state is not None:
                old = quantizer.named_state()
                quantizer.set_state(
                    **{
                        name: MOMENTUM * old[name] + (1 - MOMENTUM) * largest_of_all(state[name])
                        for name in old
                    }
                )

    def watch(self, is_on: bool) -> None:
        """Attach or detach the observer."""
        for quantizer, maximum in self._seen.items():
            quantizer.observer = maximum if is_on else None


class _StepMaximum:
    """The largest magnitudes of one quantizer's tensors in one step of training."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        assert quantizer.spec is not None  # noqa: S101 (participants have formats)
        self._spec = quantizer.spec
        self._collector = AmaxCollector(self._spec)

    def collect(self, quantizer: TensorQuantizer, x: Tensor) -> None:
        """Take a tensor of training into account."""
        if quantizer.training:
            self._collector.collect(quantizer, x.detach())

    def take(self) -> dict[str, Tensor] | None:
        """Return the state for what was seen since the last time, or None where nothing was."""
        state = self._collector.state()
        self._collector = AmaxCollector(self._spec)
        return state
