"""Finalizing is refused where it would mislead, and a failing one leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import ModeError, PluginError
from octavo.core.formats import QuantSpec
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect


def quantized() -> nn.Module:
    return octavo.quantize(tiny_llama(torch.bfloat16), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)


def test_a_finalized_model_is_refused() -> None:
    model = quantized()
    octavo.finalize(model, "unified_hf")
    before = snapshot(model)

    message = r"^the model is finalized for unified_hf already; call octavo.unfinalize\(model\) first$"
    with pytest.raises(ModeError, match=message):
        octavo.finalize(model, "unified_hf")
    with pytest.raises(ModeError, match=message), octavo.finalized(model, "unified_hf"):
        pass

    assert snapshot(model) == before


def test_a_model_that_is_not_finalized_cannot_be_unfinalized() -> None:
    with pytest.raises(ModeError, match=r"^the model is not finalized$"):
        octavo.unfinalize(quantized())


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    model = quantized()
    before = snapshot(model)

    known = "awq, compressed_tensors, gptq, tensorrt_llm, unified_hf"
    message = rf"^no exporter 'unified_hg'; known: {known}. Did you mean 'unified_hf'\?$"
    with pytest.raises(PluginError, match=message):
        octavo.finalize(model, "unified_hg")

    assert snapshot(model) == before


class Failing(UnifiedHfDialect):
    """A dialect with a bug that shows at the third activation."""

    calls = 0

    def activation_state(
        self, quantizer: str, spec: QuantSpec, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("a bug in the dialect")
        return super().activation_state(quantizer, spec, state)


def test_a_finalization_that_fails_half_way_is_undone() -> None:
    model = quantized()
    before = snapshot(model)

    with pytest.raises(ZeroDivisionError):
        octavo.finalize(model, Failing())

    assert snapshot(model) == before


def test_a_context_that_fails_on_entry_is_undone() -> None:
    model = quantized()
    before = snapshot(model)

    with pytest.raises(ZeroDivisionError), octavo.finalized(model, Failing()):
        pass

    assert snapshot(model) == before
