"""NaN under a scale that is a number: fake quantization shows it, codes store it where the format can."""

from __future__ import annotations

import pytest
import torch

from octavo.core.formats import PerToken, QuantSpec, dequantize, fake_quantize, quantize
from oracles import number_formats as oracle


@pytest.mark.parametrize("name", oracle.ELEMENTS)
def test_only_the_nan_itself_changes(name: str) -> None:
    spec, state = QuantSpec(name, PerToken()), [torch.tensor([2.0, 3.0])]
    clean = torch.tensor([[1.0, 0.0, -2.0, 1.5, 0.25], [0.5, 3.0, 0.0, -1.0, 0.0]])
    dirty = clean.clone()
    dirty[0, 1] = torch.nan

    faked = fake_quantize(dirty, state, spec)
    back = dequantize(*quantize(dirty, state, spec), spec, dirty.shape, torch.float32)

    # The two differ on purpose at the NaN: integers and sub-byte floats have no code for it, and store 0.
    assert faked[0, 1].isnan()
    assert back[0, 1].isnan() if name in ("e4m3", "e5m2") else back[0, 1] == 0
    faked[0, 1] = back[0, 1] = 0.0
    assert torch.equal(faked, fake_quantize(clean, state, spec))
    assert torch.equal(back, faked)
