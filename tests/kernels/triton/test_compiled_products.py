"""Products compiled ahead of time: what the interpreter cannot show, above all which instructions multiply.

Nothing is run. Each format is compiled once for each architecture, in one of the shapes and dtypes that launches use.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.triton_products import FORMATS
from octavo.core.formats import QuantSpec
from octavo.kernels.triton.gemm_formats import WeightFormat, weight_format
from octavo.kernels.triton.gemm_tiles import tiles
from octavo.kernels.triton.tuning import Launch

pytest.importorskip("triton", reason="needs the package triton")

SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that one program may have
FEW, MANY = (1, 8192, 8192), (4096, 8192, 8192)
BF16_PRODUCT = {
    (80, FEW): "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    (80, MANY): "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    (90, FEW): "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    (90, MANY): "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
    (100, FEW): "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    (100, MANY): "tcgen05.mma.cta_group::1.kind::f16",
}
CODE_PRODUCT = {
    (80, "i8", MANY): "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    (90, "i8", MANY): "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8",
    (100, "i8", MANY): "tcgen05.mma.cta_group::1.kind::i8",
    (89, "fp8e4nv", MANY): "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
    (90, "fp8e4nv", MANY): "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
    (100, "fp8e4nv", MANY): "tcgen05.mma.cta_group::1.kind::f8f6f4",
    (90, "fp8e4nv", FEW): "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",  # in which e4m3 is exact
    (90, "i8", FEW): "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
}


def constants(spec: QuantSpec, tile: Launch, even: bool) -> dict[str, Any]:
    from octavo.kernels.triton.gemm_launch import format_constants, tile_constants

    form = weight_format(spec.key)
    assert isinstance(form, WeightFormat)
    num_in = tile["block_in"] * 8 + (0 if even else 1)
    return {**format_constants(form, tile), **tile_constants(tile, num_in)}


def compiled(
    kernel: Any, types: dict[str, str], constant: dict[str, Any], capability: int, tile: Launch
) -> Any:
    """Compile for pointers and lengths that are multiples of 16; names in neither dict are int32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constant else types.get(name, "i32") for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name not in constant and name not in ("rows", "row_blocks")
    }
    places = {(names.index(name),): value for name, value in constant.items()}
    source = ASTSource(kernel, signature, constexprs=places, attrs=aligned)
    options = {key: tile[key] for key in ("num_warps", "num_stages")}
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={**options, "enable_fp_fusion": False}
    )


def compiled_product(spec: QuantSpec, capability: int, sizes: tuple[int, int, int], **options: Any) -> Any:
    import triton.language as tl

    from octavo.kernels.triton.device.gemm import gemm_kernel

    dtype = options.get("dtype", "bf16")
    tile = tiles(*sizes, bits=32 if dtype == "fp32" else 16)[0]
    types = dict.fromkeys(("x", "bias"), f"*{dtype}")
    types["out"] = "*fp32" if tile["splits"] > 1 else f"*{dtype}"
    bits, fp8 = spec.element_type.bits, spec.element == "e4m3" and capability >= 89
    types |= {
        "payload": "*u8" if fp8 else "*i32",
        "stored": "*fp32" if spec.scale == "float32" else "*u8",
        "global_scale": "*fp32",
    }
    types |= dict.fromkeys(("order", "block_expert", "block_first", "block_end"), "*i64")
    weight = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype]
    constant = {**constants(spec, tile, options.get("even", True)), "WEIGHT": weight, "FP8": fp8}
    constant["PER_UNIT"] = 1 if fp8 else 32 // bits
    absent = [] if options.get("experts") else ["order", "block_expert", "block_first", "block_end"]
    absent += [] if spec.global_max else ["global_scale"]
    constant |= dict.fromkeys(absent)
    result = compiled(gemm_kernel, types, constant, capability, tile)
    assert len(result.asm["cubin"]) > 0
    assert result.metadata.shared <= SHARED[capability]
    return result.asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("sizes", [FEW, MANY], ids=["few", "many"])
def test_tensor_cores_multiply_bf16(sizes: tuple[int, int, int], capability: int) -> None:
    ptx = compiled_product(FORMATS["int4 g128"], capability, sizes)
    assert BF16_PRODUCT[capability, sizes] in ptx
    assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", ptx)  # the weight's rounding, as torch rounds
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10,", ptx)  # codes come in 16 bytes at a time


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int8 per channel", "fp8 per tensor", "mxfp8"])
def test_every_format_compiles(name: str, capability: int) -> None:
    ptx = compiled_product(FORMATS[name], capability, FEW)
    assert "bf16.bf16.f32" in ptx
    assert ".ftz" not in ptx  # codes are written into subnormal numbers


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_experts_with_uneven_columns_compile(capability: int) -> None:
    ptx = compiled_product(FORMATS["fp8 square blocks"], capability, MANY, experts=True, even=False)
    assert re.search("mma", ptx)


def test_fp32_is_multiplied_as_fp32() -> None:
    ptx = compiled_product(FORMATS["int4 g32"], 90, FEW, dtype="fp32")
    assert "fma.rn.f32" in ptx
    assert "tf32" not in ptx


@pytest.mark.parametrize(("capability", "codes", "sizes"), CODE_PRODUCT, ids=str)
def test_tensor_cores_multiply_codes(capability: int, codes: str, sizes: tuple[int, int, int]) -> None:
    from octavo.kernels.triton.device.gemm_codes import gemm_codes_kernel
    from octavo.kernels.triton.gemm_launch import tile_constants

    tile = tiles(*sizes, bits=8)[0]
    types = {"x": f"*{codes}", "weight": f"*{codes}", "x_scale": "*fp32", "stored": "*fp32", "bias": "*bf16"}
    types["out"] = "*bf16"
    constant = {**tile_constants(tile, sizes[2]), "X_SCALES": 1, "WEIGHT_SCALES": 1}
    result = compiled(gemm_codes_kernel, types, constant, capability, tile)
    assert len(result.asm["cubin"]) > 0
    assert result.metadata.shared <= SHARED[capability]
    assert CODE_PRODUCT[capability, codes, sizes] in result.asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_sums_of_splits_compile(capability: int) -> None:
    from octavo.kernels.triton.device.sum_splits import sum_splits_kernel

    tile = {"num_warps": 4, "num_stages": 1}
    result = compiled(
        sum_splits_kernel, {"partial": "*fp32", "out": "*bf16"}, {"BLOCK": 1024}, capability, tile
    )
    assert "cvt.rn.bf16" in result.asm["ptx"]
    assert "red." not in result.asm["ptx"]  # no atomics
