"""What is compiled for older machines computes the same; that for newer ones than this is compiled, and not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from helpers.kernel_cases import DTYPES, awkward, same, state_for, with_reference
from octavo.core import ops
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec
from octavo.kernels.cpu import build, compiled
from octavo.kernels.cpu.library import library

SPECS = [
    QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    QuantSpec("e4m3", PerBlock(((-1, 32),)), "e8m0", ties="toward_zero"),
    QuantSpec("int8", PerChannel(-1), arithmetic="divide_native"),
    QuantSpec("e5m2", PerToken(), dynamic=True),
    QuantSpec("int3", PerBlock(((-1, 24), (-2, 5)))),
]


@pytest.fixture
def _baseline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    oldest = replace(library(), isa="baseline")
    monkeypatch.setattr(compiled, "library", lambda: oldest)
    compiled._function.cache_clear()
    yield
    compiled._function.cache_clear()


def test_every_instruction_set_is_compiled() -> None:
    for isa in build.INSTRUCTION_SETS:
        assert replace(library(), isa=isa).function("fake_quantize", ()) is not None


@pytest.mark.usefixtures("_baseline")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_oldest(spec: QuantSpec, dtype: torch.dtype) -> None:
    x, grad = awkward((13, 75), 0, dtype), awkward((13, 75), 1, dtype)
    state = state_for(x, spec, 0)
    packed = with_reference(lambda: ops.quantize(x, state, spec))
    finite = awkward((13, 75), 0, dtype).nan_to_num(1.0, 2.0, -2.0)
    for call in (
        lambda: ops.amax(x, spec),
        lambda: ops.fake_quantize(x, state, spec.key),
        lambda: torch.ops.octavo.fake_quantize_backward(grad, x, state, spec.key),
        lambda: ops.quantize(finite, state_for(finite, spec, 0), spec).payload,
        lambda: ops.dequantize(packed, spec, x.shape, dtype),
    ):
        assert same(call(), with_reference(call))


@pytest.mark.usefixtures("_baseline")
def test_every_half_on_the_oldest() -> None:
    """Its conversions of fp16 are our own."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for largest in (1.0, 65504.0, 1e-7):
        call = lambda: ops.fake_quantize(x, [torch.tensor(largest)], QuantSpec("e5m2").key)  # noqa: B023, E731
        assert same(call(), with_reference(call))
