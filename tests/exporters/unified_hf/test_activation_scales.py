"""Calibrated maxima as stored scales, and back to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.formats import PerBlock, QuantSpec
from octavo.exporters.unified_hf.activation_scales import divisor_of, scale_from_state, state_from_scale
from octavo.exporters.unified_hf.caches import FP8_KV, NVFP4_KV

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
FORMATS = {448.0: QuantSpec("e4m3"), 127.0: QuantSpec("int8"), 2688.0: NVFP4, 7.0: QuantSpec("int4")}
MAXIMA = st.floats(2.0**-100, 2.0**100, width=32)
ONE = np.float32(1)


@pytest.mark.parametrize(
    ("quantizer", "spec", "divisor"),
    [
        *(("input_quantizer", spec, divisor) for divisor, spec in FORMATS.items()),
        ("k_bmm_quantizer", FP8_KV, 448.0),
        ("v_bmm_quantizer", NVFP4_KV, 448.0),
    ],
    ids=str,
)
def test_what_maxima_are_divided_by(quantizer: str, spec: QuantSpec, divisor: float) -> None:
    assert divisor_of(quantizer, spec) == divisor


@pytest.mark.parametrize(("divisor", "spec"), FORMATS.items(), ids=str)
@given(value=MAXIMA)
@settings(max_examples=300, deadline=None)
def test_the_recovered_maximum_has_the_same_scale_bit_for_bit(
    divisor: float, spec: QuantSpec, value: float
) -> None:
    (name,) = spec.state
    scale = scale_from_state({name: torch.tensor(value)}, divisor)

    state = state_from_scale(scale, spec, divisor)

    assert state.keys() == {name}
    assert scale.shape == state[name].shape == ()
    assert scale.dtype == state[name].dtype == torch.float32
    assert scale.numpy() == np.float32(value) / np.float32(divisor)
    assert torch.equal(scale_from_state(state, divisor), scale)


@pytest.mark.parametrize(("divisor", "spec"), FORMATS.items(), ids=str)
@given(value=MAXIMA)
@settings(max_examples=300, deadline=None)
def test_the_recovered_maximum_is_the_calibrated_one_but_for_the_last_bit(
    divisor: float, spec: QuantSpec, value: float
) -> None:
    (name,) = spec.state
    calibrated = np.float32(value)
    scale = scale_from_state({name: torch.tensor(calibrated)}, divisor)

    found = state_from_scale(scale, spec, divisor)[name].numpy()

    assert np.nextafter(calibrated, ONE * 0) <= found <= np.nextafter(calibrated, np.float32(np.inf))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_scales_of_one_element_are_read_in_either_shape(shape: tuple[int, ...]) -> None:
    state = state_from_scale(torch.full(shape, 0.5), QuantSpec("e4m3"), 448.0)

    assert state["amax"].shape == ()
    assert state["amax"] == 224
