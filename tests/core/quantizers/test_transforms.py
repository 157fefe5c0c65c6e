"""A quantizer with a bias or a rotation, against the same steps in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.core.errors import ModeError
from octavo.core.formats import QuantSpec
from octavo.core.quantizers import Bias, Rotation, TensorQuantizer
from oracles import number_formats as oracle

INT8 = QuantSpec("int8")
CHANNELS = Bias((-4, -2))


def keys() -> Tensor:
    """[batch, heads, tokens, head_dim], every channel around a value of its own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 5, 8, generator=generator) + 4 * torch.randn(3, 1, 8, generator=generator)


def rounded(x: np.ndarray[Any, Any], amax: float) -> np.ndarray[Any, Any]:
    return oracle.fake_quantize(x.astype(np.float32), INT8.to_json(), np.float32(amax), None, "float32")


def test_a_static_bias_is_taken_off_before_rounding_and_put_on_after() -> None:
    x, quantizer = keys(), TensorQuantizer(INT8, bias=CHANNELS)
    assert quantizer.needs_calibration
    quantizer.bias_value = x.mean((0, 2), keepdim=True)
    assert quantizer.needs_calibration, "the amax is missing"
    quantizer.set_state(amax=torch.tensor(3.0))
    assert not quantizer.needs_calibration

    bias = quantizer.bias_value.numpy()
    np.testing.assert_array_equal(quantizer(x).numpy(), rounded(x.numpy() - bias, 3.0) + bias)
    quantizer.enabled = False
    assert quantizer(x) is x


@pytest.mark.parametrize("method", ["mean", "max_min"])
def test_a_dynamic_bias_follows_the_values(method: str) -> None:
    x, quantizer = keys(), TensorQuantizer(INT8, bias=Bias((-1,), method, dynamic=True))
    quantizer.set_state(amax=torch.tensor(5.0))

    values = x.numpy()
    middle = (values.max(-1, keepdims=True) + values.min(-1, keepdims=True)) / 2
    bias = middle if method == "max_min" else x.mean(-1, keepdim=True).numpy()
    np.testing.assert_array_equal(quantizer(x).numpy(), rounded(values - bias, 5.0) + bias)


def test_a_bias_that_was_never_calibrated_is_loud() -> None:
    quantizer = TensorQuantizer(QuantSpec("int8", dynamic=True), bias=CHANNELS)

    with pytest.raises(ModeError, match=r"the mean bias over -4, -2 of this quantizer was never calibrated"):
        quantizer(keys())


def test_the_bias_keeps_its_dtype_and_travels_in_state_dicts() -> None:
    quantizer = TensorQuantizer(INT8, bias=CHANNELS)
    quantizer.bias_value = torch.full((1, 3, 1, 8), 1 / 3)

    assert quantizer.bfloat16().bias_value.dtype == torch.float32
    assert quantizer.state_dict()["bias_value"].shape == (1, 3, 1, 8)
    x = keys().bfloat16()
    quantizer.set_state(amax=torch.tensor(3.0))
    assert quantizer(x).dtype == torch.bfloat16


def test_a_rotated_tensor_is_rounded_rotated() -> None:
    x, quantizer = keys(), TensorQuantizer(INT8)
    quantizer.rotation = Rotation()
    quantizer.set_state(amax=torch.tensor(20.0))

    signs = np.array([[(-1.0) ** (i & j).bit_count() for j in range(8)] for i in range(8)]) / np.sqrt(8)
    rotated = x.double().numpy() @ signs
    found = quantizer(x).numpy()
    np.testing.assert_allclose(found, rounded(rotated, 20.0), rtol=0, atol=20 / 127)
    assert (np.abs(found - rounded(rotated, 20.0)) < 1e-5).mean() > 0.99, "but for values between two codes"
    quantizer.enabled = False
    np.testing.assert_allclose(quantizer(x).numpy(), rotated, atol=1e-5)
    quantizer.rotation = Rotation(back=True)
    np.testing.assert_allclose(quantizer(x).numpy(), x.numpy(), atol=1e-5)


def test_both_are_shown() -> None:
    quantizer = TensorQuantizer(INT8, bias=Bias((-1,), "max_min", dynamic=True))
    quantizer.rotation = Rotation(4, back=True)

    assert quantizer.extra_repr() == (
        "int8 tensor, not calibrated, rotated in blocks of 4 and back, dynamic max_min bias over -1"
    )
    assert f"{TensorQuantizer()}" == "TensorQuantizer(off)"
