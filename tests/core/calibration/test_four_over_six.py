"""Four-over-six (arXiv:2512.02010): the largest value of each block gets the code 6 or 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import octavo
from octavo.core.formats import PerBlock, QuantSpec, fake_quantize
from octavo.core.packed import PackedTensor

SPEC = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 6.0 * 256)


SCALES = [101, 106, 109, 113, 114, 117, 120, 124]
GLOBAL_SCALE = "0x1.aaa8d6p-9"


def weight() -> Tensor:
    i = torch.arange(128.0).reshape(4, 32)
    return torch.sin(i * i) ** 3 * torch.tensor([1.0, 2.0, 3.0, 5.0])[:, None]


def test_stored_scales_equal_the_peers() -> None:
    """What ModelOpt 0.47 stores when every other block has one and a half times its largest magnitude."""
    largest = weight().reshape(4, 2, 16).abs().amax(-1)
    amax = largest * torch.tensor([1.0, 1.5])

    packed = PackedTensor.pack(weight(), [amax, largest.max()], SPEC)

    assert packed.scale.view(torch.uint8).flatten().tolist() == SCALES
    assert packed.global_scale is not None
    assert float(packed.global_scale) == float.fromhex(GLOBAL_SCALE)


def test_each_block_takes_the_better_of_both() -> None:
    model: Any = nn.Sequential(nn.Linear(32, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight())
    octavo.quantize(model, octavo.NVFP4_FOUR_OVER_SIX_CFG, [torch.randn(4, 32)], quiet=True)

    quantizer = model[0].weight_quantizer
    largest = weight().reshape(4, 2, 16).abs().amax(-1)
    assert quantizer.spec == SPEC
    assert set((quantizer.amax / largest).flatten().tolist()) == {1.0, 1.5}

    def errors(amax: Tensor) -> Tensor:
        rounded = fake_quantize(weight(), [amax, largest.max()], SPEC)
        return (rounded - weight()).double().square().reshape(4, 2, 16).sum(-1)

    six, four = errors(largest), errors(1.5 * largest)
    assert torch.equal(errors(quantizer.amax), torch.minimum(six, four))


def test_the_config_says_so_again() -> None:
    model = nn.Sequential(nn.Linear(32, 4))
    octavo.quantize(model, octavo.NVFP4_FOUR_OVER_SIX_CFG, [torch.randn(4, 32)], quiet=True)

    octavo.set_quantizer_attribute(model, "*weight_quantizer", {"pass_through_bwd": True})

    assert model[0].weight_quantizer.spec == SPEC  # type: ignore[union-attr]
