"""A scale that training changes, of a tensor that is rotated first."""

from __future__ import annotations

import torch

from octavo.core.formats import QuantSpec
from octavo.core.quantizers import Rotation, TensorQuantizer


def test_the_scale_of_a_rotated_tensor_learns() -> None:
    quantizer = TensorQuantizer(QuantSpec("int8"), (0, 16))
    quantizer.rotation = Rotation()
    quantizer.set_state(amax=torch.tensor(1.0))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    before = quantizer(x)

    quantizer.learn_amax("lsq")
    learning = quantizer(x)
    learning.square().sum().backward()

    assert torch.equal(learning, before)
    assert quantizer.amax_shift is not None
    assert quantizer.amax_shift.grad is not None
    assert quantizer.amax_shift.grad.abs().item() > 0
