"""Scales that a training is learning: which they are, how they become plain state, what has to wait until then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from octavo.core.errors import ModeError
from octavo.core.modules import tensor_quantizers
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.gathered import gathered

SHIFT = "amax_shift"


def learned_quantizers(model: nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """Yield the quantizers whose scales are being learned, with their names."""
    for name, quantizer in tensor_quantizers(model):
        if quantizer.learning is not None:
            yield name, quantizer


def fix_scales(model: nn.Module) -> None:
    """Make learned scales plain state again: what training has made of them, without parameters.

    Where ranks have parts of them, every rank calls this.
    """
    for _, quantizer in list(learned_quantizers(model)):
        with gathered(quantizer, [SHIFT]):
            learned = quantizer.named_state()["amax"].detach()
        quantizer.fix_amax(learned)


@contextmanager
def not_learning(model: nn.Module) -> Iterator[None]:
    """Leave the changes that training has made to scales aside, for the time of a context."""
    paused = {quantizer: quantizer.learning for _, quantizer in learned_quantizers(model)}
    try:
        for quantizer in paused:
            quantizer.learning = None
        yield
    finally:
        for quantizer, learning in paused.items():
            quantizer.learning = learning


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
