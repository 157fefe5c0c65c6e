"""Changing the format of a quantizer to one that needs the same state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from octavo.core import formats
from octavo.core.errors import ModeError
from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec
from octavo.core.quantizers import TensorQuantizer

INT8 = QuantSpec("int8", PerChannel(0))
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
X = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))


def calibrated() -> TensorQuantizer:
    quantizer = TensorQuantizer(INT8, X.shape)
    quantizer.set_state(amax=X.abs().amax(1))
    return quantizer


@pytest.mark.parametrize("changes", [{"arithmetic": "divide"}, {"element": "e4m3"}, {"element": "int4"}])
def test_the_new_format_is_what_forward_computes(changes: dict[str, str]) -> None:
    quantizer, spec = calibrated(), replace(INT8, **changes)
    before = quantizer(X)

    quantizer.respecify(spec)

    assert quantizer.spec == spec
    assert quantizer.active_key == spec.key
    assert torch.equal(quantizer(X), formats.fake_quantize(X, [X.abs().amax(1)], spec))
    assert not quantizer.needs_calibration
    quantizer.respecify(INT8)
    assert torch.equal(quantizer(X), before)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (
            NVFP4,
            r"cannot change int8 channel0 to e2m1 .* its state is \('global_amax',\), found \('amax',\)$",
        ),
        (QuantSpec("int8", dynamic=True), r"to int8 tensor dynamic: its state is \(\), found \('amax',\)$"),
    ],
)
def test_other_state_is_refused(spec: QuantSpec, found: str) -> None:
    quantizer = calibrated()
    with pytest.raises(ModeError, match=found):
        quantizer.respecify(spec)

    assert quantizer.spec == INT8


@pytest.mark.parametrize(
    "granularity", [PerChannel(1), PerTensor(), PerBlock(((-1, 16),)), PerToken()], ids=str
)
def test_state_of_another_shape_or_meaning_is_refused(granularity: formats.Granularity) -> None:
    with pytest.raises(ModeError, match="int8 channel0"):
        calibrated().respecify(QuantSpec("int8", granularity))


def test_a_quantizer_without_format_cannot_get_one_that_has_state() -> None:
    with pytest.raises(ModeError, match="amax"):
        TensorQuantizer().respecify(INT8)
