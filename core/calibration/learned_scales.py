"""Scales that a training is learning: which they are, how they become plain state, what has to wait until then."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import TensorQuantizer


def learned_quantizers(model: nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """Yield the quantizers whose scales are being learned, with their names."""
    for name, quantizer in tensor_quantizers(model):
        if quantizer.amax_shift is not None:
            yield name, quantizer


def fix_scales(model: nn.Module) -> None:
    """Make learned scales plain state again: what training has made of them, without parameters."""
    for _, quantizer in list(learned_quantizers(model)):
        quantizer.fix_amax()


def check_scales_fixed(model: nn.Module, doing: str) -> None:
    """Refuse what needs scales that stay.

    Raises:
        ModeError: scales are being learned; the first is named.
    """
    learned = [name for name, _ in learned_quantizers(model)]
    if learned:
        raise ModeError(
            f"the scales of {len(learned)} quantizers are being learned (first {learned[0]!r}); end the training "
            f"before {doing} it (QuantizedTraining.end(), which OctavoCallback calls when the Trainer is done)"
        )
