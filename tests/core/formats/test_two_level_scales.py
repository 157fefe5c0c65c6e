"""Two-level scales (NVFP4): e4m3 block scales under one fp32 scale of the tensor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.formats.scales import global_scale_from_amax, scales_from_amax, step_from_stored
from oracles import number_formats as oracle

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
GLOBAL_AMAX = [1.0, 2688.0, 0.1, 3.7e-5, 1e30, 3.4028235e38, 2.0**-110, 1e-38, 0.0]
SPECS = [
    NVFP4,
    QuantSpec("e2m1", PerBlock(((-1, 32),)), "e4m3", 448.0),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 1536.0, dynamic=True),
    QuantSpec("int4", PerBlock(((-1, 16),)), "e4m3", 3136.0),
    QuantSpec("e4m3", PerBlock(((-1, 16),)), "e4m3", 200704.0),
]


def block_amax(global_amax: float) -> torch.Tensor:
    """Return block maxima from far below to above the global one, and zero."""
    generator = torch.Generator().manual_seed(0)
    fractions = torch.cat([torch.rand(2000, generator=generator), 2.0 ** torch.arange(-40, 3)])
    others = torch.tensor([0.0, -0.0, 2.0**-149, 1e-30, 1.0])
    return torch.cat([fractions * global_amax, others]).clamp(max=3e38)


@pytest.mark.parametrize("global_amax", GLOBAL_AMAX)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scales_equal_those_of_the_oracle(spec: QuantSpec, global_amax: float) -> None:
    amax = block_amax(global_amax)
    expected = oracle.scales_from_amax(amax.numpy(), np.float32(global_amax), spec.to_json())

    scales = scales_from_amax(amax, torch.tensor(global_amax), spec)

    assert scales.stored.dtype == torch.float8_e4m3fn
    assert_array_equal(scales.stored.view(torch.uint8).numpy(), expected.stored)
    assert scales.global_scale is not None
    assert scales.global_scale.shape == ()
    assert_array_equal(oracle.bits_of(scales.global_scale.numpy()), oracle.bits_of(expected.global_scale))
    assert_array_equal(oracle.bits_of(scales.step.numpy()), oracle.bits_of(expected.step))
    assert scales.inverse is None


def test_block_scales_are_rounded_as_in_ml_dtypes() -> None:
    amax = block_amax(5.0)
    global_scale = np.float32(5.0) / np.float32(2688.0)
    ratio = amax.numpy() / (np.float32(6.0) * global_scale)
    ratio = np.where(amax.numpy() == 0, np.float32(1), ratio).clip(2.0**-9, 448.0)

    stored = scales_from_amax(amax, torch.tensor(5.0), NVFP4).stored

    assert_array_equal(stored.view(torch.uint8).numpy(), ratio.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_the_block_that_holds_the_global_maximum_has_the_largest_block_scale() -> None:
    scales = scales_from_amax(torch.tensor([3.0]), torch.tensor(3.0), NVFP4)

    assert scales.stored.float().tolist() == [448.0]


def test_a_zero_block_has_scale_one_and_a_tiny_one_the_smallest_scale() -> None:
    scales = scales_from_amax(torch.tensor([0.0, 1e-20]), torch.tensor(1.0), NVFP4)

    assert scales.stored.float().tolist() == [1.0, 2.0**-9]


def test_a_block_above_the_global_maximum_saturates_its_scale() -> None:
    scales = scales_from_amax(torch.tensor([1.1, 1000.0]), torch.tensor(1.0), NVFP4)

    assert scales.stored.float().tolist() == [448.0, 448.0]


@pytest.mark.parametrize("zero", [0.0, -0.0, 2.0**-149, 2.0**-111])
def test_a_tensor_of_zeros_has_global_scale_one(zero: float) -> None:
    assert global_scale_from_amax(torch.tensor(zero), NVFP4).item() == 1.0


def test_the_smallest_global_maximum_that_counts_is_scaled() -> None:
    assert global_scale_from_amax(torch.tensor(2.0**-110), NVFP4).item() == np.float32(2.0**-110 / 2688)


def test_nan_reaches_the_step() -> None:
    by_block = scales_from_amax(torch.tensor([torch.nan, 1.0]), torch.tensor(1.0), NVFP4)
    by_tensor = scales_from_amax(torch.tensor([1.0, 0.0]), torch.tensor(torch.nan), NVFP4)

    assert by_block.step.isnan().tolist() == [True, False]
    assert by_tensor.step.isnan().all()


def test_an_infinite_block_saturates_its_scale() -> None:
    stored = scales_from_amax(torch.tensor([torch.inf]), torch.tensor(1.0), NVFP4).stored

    assert stored.float().tolist() == [448.0]


def test_step_of_stored_scales_is_the_step_of_quantizing() -> None:
    scales = scales_from_amax(block_amax(0.37), torch.tensor(0.37), NVFP4)

    assert torch.equal(step_from_stored(scales.stored, scales.global_scale, NVFP4), scales.step)
