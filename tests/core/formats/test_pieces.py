"""Large tensors are rounded piece by piece, and are what they would be as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec, fake_quantize
from octavo.core.formats import pieces as pieces_module
from octavo.core.formats.pieces import pieces
from octavo.core.formats.quantization import compute_amax, dequantize, quantize

SPECS = [
    QuantSpec("int8", PerChannel(0)),
    QuantSpec("e4m3", PerTensor()),
    QuantSpec("int8", PerToken(), dynamic=True),
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    QuantSpec("e2m1", PerBlock(((-2, 32), (-1, 32))), "e8m0", dynamic=True),
]


def numbers(x: torch.Tensor, state: Sequence[torch.Tensor], spec: QuantSpec) -> list[torch.Tensor]:
    payload, scale, global_scale = quantize(x, state, spec)
    values = dequantize(payload, scale, global_scale, spec, x.shape, x.dtype)
    return [fake_quantize(x, state, spec), values, payload, scale.float()]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_pieces_change_nothing(spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 270, 1000, generator=torch.Generator().manual_seed(0))
    amax = {"amax": compute_amax(x, spec), "global_amax": x.abs().max()}
    state = [amax[name] for name in spec.state]

    in_pieces = numbers(x, state, spec)
    monkeypatch.setattr(pieces_module, "_NUM_VALUES", x.numel())

    whole = numbers(x, state, spec)
    assert all(torch.equal(part, other) for part, other in zip(in_pieces, whole, strict=True))
    assert torch.equal(whole[0], whole[1])


def test_pieces_cover_a_tensor_and_respect_what_is_whole() -> None:
    x, scale = torch.zeros(1, 900, 1000), torch.ones(1, 900, 1)

    found = list(pieces([x, scale], whole=(2,)))
    for part, factor in found:
        part += factor

    assert len(found) > 1
    assert all(part.shape[2] == 1000 and part.shape[1] == factor.shape[1] for part, factor in found)
    assert (x == 1).all()


def test_maxima_are_nan_where_a_block_has_one() -> None:
    x = torch.full((64, 8192), -2.0)
    x[3, 17] = torch.nan

    amax = compute_amax(x, QuantSpec("e2m1", PerBlock(((-1, 16),)), "e8m0", dynamic=True))

    assert amax.isnan().nonzero().tolist() == [[3, 1]]
    assert (amax.nan_to_num(2.0) == 2).all()
