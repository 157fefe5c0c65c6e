"""What is tried on Triton's kernels, on a CUDA device or in the interpreter on the CPU, against the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core import formats
from octavo.core.formats import QuantSpec
from octavo.core.ops import reference
from octavo.kernels.triton import packing, rounding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BYTE_FLOATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def poison_new_tensors() -> None:
    """Have torch fill what `torch.empty` and its like return with NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def assert_same_bits(found: Tensor, expected: Tensor, what: object) -> None:
    """Every bit is the same, but for which NaN a NaN is."""
    assert found.dtype == expected.dtype, what
    assert found.shape == expected.shape, what
    assert found.is_contiguous(), what
    different = (_bits(found.cpu()) != _bits(expected)).nonzero()
    if len(different):
        first = tuple(different[0].tolist())
        raise AssertionError(
            f"{what}: {len(different)} of {expected.numel()} differ, the first at {first}: "
            f"{found[first].item()} instead of {expected[first].item()}"
        )


def assert_all_operators(x: Tensor, spec: QuantSpec, state: list[Tensor]) -> None:
    """The kernels compute what the reference computes on the CPU, for `x` with the strides it has."""
    what = f"{spec} {spec.arithmetic} {spec.ties} {x.dtype} {tuple(x.shape)}"
    on_device, known = x.to(DEVICE), [tensor.to(DEVICE) for tensor in state]
    fake = rounding.fake_quantize(on_device, known, spec.key, True)
    assert_same_bits(fake, formats.fake_quantize(x, state, spec).contiguous(), f"fake_quantize {what}")

    parts = packing.quantize(on_device, known, spec.key)
    expected = reference.quantize(x, state, spec.key)
    for name, part, other in zip(("payload", "scale", "global scale"), parts, expected, strict=False):
        assert_same_bits(_typed(part, spec, name), _typed(other, spec, name), f"{name} {what}")
    assert len(parts) == len(expected)

    packed = [*parts, None][:3]
    back = packing.dequantize(*packed, spec.key, x.shape, x.dtype)
    level = [*expected, None][:3]
    assert_same_bits(
        back, formats.dequantize(*level, spec, x.shape, x.dtype).contiguous(), f"dequantize {what}"
    )
    if spec.state:
        grad = torch.linspace(-3, 3, x.numel()).reshape(x.shape).to(x.dtype)
        masked = rounding.fake_quantize_backward(grad.to(DEVICE), on_device, known, spec.key)
        assert_same_bits(
            masked, reference.fake_quantize_backward(grad, x, state, spec.key), f"backward {what}"
        )


def assert_amax(x: Tensor, spec: QuantSpec) -> None:
    """The kernel finds the maxima that the reference finds on the CPU."""
    found = rounding.amax(x.to(DEVICE), spec.key)
    assert_same_bits(found, formats.compute_amax(x, spec), f"amax {spec} {x.dtype} {tuple(x.shape)}")


def _typed(part: Tensor, spec: QuantSpec, name: str) -> Tensor:
    """Return one-byte floats as such, which have a NaN of either sign."""
    return (
        part.view(_BYTE_FLOATS[spec.element]) if name == "payload" and spec.element in _BYTE_FLOATS else part
    )


def _bits(x: Tensor) -> Tensor:
    if x.dtype.is_floating_point:
        x = torch.where(x.float().isnan(), torch.nan, x.float()).to(x.dtype)
    return x.contiguous().view(_BITS[x.dtype.itemsize])
