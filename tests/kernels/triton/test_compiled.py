"""Every kernel compiled for three architectures, without a device: machine code, and only exact arithmetic in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton")

from helpers.ops_cases import (
    E4M3,
    E4M3_SQUARE,
    E4M3_TOKEN,
    INT4_BLOCK,
    INT8,
    INT8_CHANNEL,
    MXFP4,
    MXFP6,
    NVFP4,
    NVFP4_STATIC,
)
from helpers.triton_compiled import Compiled, compiled
from octavo.kernels.triton.device.amax import amax_kernel
from octavo.kernels.triton.device.fake_quantize import fake_quantize_kernel, mask_gradient_kernel
from octavo.kernels.triton.device.quantize import dequantize_kernel, quantize_kernel

BF16, FP16, FP32, BYTES, INT32 = torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int32
# kernel, dtypes of its tensors, format, further arguments of `compiled`
KERNELS: dict[str, tuple[Any, ...]] = {
    "fake-quantized E4M3": (fake_quantize_kernel, [BF16, BF16, FP32, None], E4M3, {}),
    "fake-quantized INT8": (fake_quantize_kernel, [FP16, FP16, FP32, None], INT8_CHANNEL, {}),
    "fake-quantized tokens": (fake_quantize_kernel, [FP32, FP32, None, None], E4M3_TOKEN, {"whole": True}),
    "fake-quantized squares": (fake_quantize_kernel, [BF16, BF16, FP32, None], E4M3_SQUARE, {}),
    "fake-quantized NVFP4": (fake_quantize_kernel, [BF16, BF16, None, FP32], NVFP4, {}),
    "fake-quantized MXFP4": (fake_quantize_kernel, [BF16, BF16, None, None], MXFP4, {"wide": True}),
    "masked gradient": (mask_gradient_kernel, [BF16, BF16, BF16, FP32, FP32], NVFP4_STATIC, {}),
    "quantized NVFP4": (quantize_kernel, [BYTES, BYTES, BF16, None, FP32], NVFP4, {"bits": 4}),
    "quantized MXFP6": (quantize_kernel, [BYTES, BYTES, BF16, None, None], MXFP6, {"bits": 6}),
    "quantized INT4": (quantize_kernel, [BYTES, FP32, BF16, FP32, None], INT4_BLOCK, {"bits": 4}),
    "values of NVFP4": (dequantize_kernel, [BF16, BYTES, BYTES, FP32], NVFP4, {"bits": 4}),
    "values of MXFP6": (dequantize_kernel, [FP16, BYTES, BYTES, None], MXFP6, {"bits": 6, "wide": True}),
    "maximum": (amax_kernel, [INT32, BF16], INT8, {}),
    "maxima": (amax_kernel, [INT32, BF16], NVFP4, {}),
}
DIVIDES = {
    "fake-quantized NVFP4",
    "quantized NVFP4",
    "masked gradient",
    "fake-quantized INT8",
    "quantized INT4",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code_of_exact_arithmetic(name: str, capability: int) -> None:
    kernel, tensors, spec, further = KERNELS[name]
    found = compiled(kernel, tensors, spec, capability, **further)
    assert found.cubin[:4] == b"\x7fELF"
    assert found.instructions & {"ld.global.v4.b32", "ld.global.b8"}
    assert_exact(found)
    if name in DIVIDES:
        assert "div.rn.f32" in found.instructions


def assert_exact(found: Compiled) -> None:
    """No approximations, no fused products, no flushing of subnormal numbers but where ceil meets none."""
    floating = {one for one in found.instructions if ".f32" in one or ".f16" in one or ".bf16" in one}
    assert {one for one in floating if one.startswith(("fma", "mad", "rcp", "ex2", "sqrt"))} == set()
    assert {one for one in floating if ".approx" in one or ".full" in one or ".ftz" in one} == set()
    arithmetic = {one for one in floating if one.startswith(("mul", "add", "sub", "div"))}
    assert {one for one in arithmetic if ".rn." not in one} == set()


def test_each_thread_reads_sixteen_bytes_at_once() -> None:
    for spec, tensors, whole in [
        (E4M3, [BF16, BF16, FP32, None], False),
        (NVFP4, [BF16, BF16, None, FP32], False),
        (E4M3_TOKEN, [BF16, BF16, None, None], True),
    ]:
        found = compiled(fake_quantize_kernel, tensors, spec, 90, whole=whole)
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= found.instructions, str(spec)
