"""What a packed tensor stands for is what fake-quantizing gives, bit for bit, in every format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.calibration_snapshot import same_bits
from helpers.packed_specs import SPECS, some_tensor, state_of
from octavo.core import ops
from octavo.core.errors import ShapeError
from octavo.core.formats import QuantSpec
from octavo.core.packed import PackedTensor
from oracles import number_formats as oracle

SCALES = {"float32": torch.float32, "e4m3": torch.float8_e4m3fn, "e8m0": torch.uint8}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_dequantized_equals_fake_quantized(name: str, dtype: torch.dtype) -> None:
    spec, x = SPECS[name], some_tensor(dtype=dtype)
    state = state_of(x, spec)

    packed = PackedTensor.pack(x, state, spec)

    assert (packed.shape, packed.dtype, packed.spec) == (tuple(x.shape), dtype, spec)
    assert same_bits(packed.dequantize(), ops.fake_quantize(x, state, spec.key))
    assert not torch.equal(packed.dequantize(), x)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(list(SPECS.values())),
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape_is_padded_and_cropped_the_same_way(
    spec: QuantSpec, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    x = some_tensor(shape, dtype, seed)
    state = state_of(x, spec)

    packed = PackedTensor.pack(x, state, spec)

    packed.check()
    assert packed.payload.dtype == torch.uint8
    assert (
        packed.scale.dtype
        == {"float32": torch.float32, "e4m3": torch.float8_e4m3fn, "e8m0": torch.uint8}[spec.scale]
    )
    assert same_bits(packed.dequantize(), ops.fake_quantize(x, state, spec.key))


@pytest.mark.parametrize("name", ["fp8 per channel", "int4 blocks", "nvfp4", "mxfp4", "mxfp6"])
def test_codes_and_scales_are_the_oracles(name: str) -> None:
    spec, x = SPECS[name], some_tensor(dtype=torch.float32)
    state = state_of(x, spec)
    named = {key: tensor.numpy() for key, tensor in zip(spec.state, state, strict=True)}

    packed = PackedTensor.pack(x, state, spec)

    payload, scale, global_scale = oracle.quantize(x.numpy(), spec.to_json(), **named)
    assert packed.payload.numpy().tobytes() == payload.tobytes()
    assert packed.scale.view(torch.uint8).numpy().tobytes() == scale.tobytes()
    assert (packed.global_scale is None) == (global_scale is None)
    if packed.global_scale is not None and global_scale is not None:
        assert packed.global_scale.numpy().tobytes() == global_scale.tobytes()


@pytest.mark.parametrize("name", ["fp8", "nvfp4", "mxfp4"])
def test_another_dtype_is_rounded_to_once(name: str) -> None:
    spec, x = SPECS[name], some_tensor(dtype=torch.bfloat16)
    packed = PackedTensor.pack(x, state_of(x, spec), spec)

    values = packed.dequantize(torch.float32)

    assert values.dtype == torch.float32
    assert same_bits(packed.dequantize(), values.to(torch.bfloat16))
    assert same_bits(packed.dequantize(torch.float16), values.to(torch.float16))


def test_a_row_shard_cuts_no_byte() -> None:
    for name in ("int4 blocks", "nvfp4", "int3", "mxfp6"):
        spec, x = SPECS[name], some_tensor()
        whole = PackedTensor.pack(x, state_of(x, spec), spec)
        state = [s[:16] if s.dim() else s for s in state_of(x, spec)]

        part = PackedTensor.pack(x[:16], state, spec)

        assert torch.equal(part.payload, whole.payload[:16])
        assert torch.equal(part.scale.view(torch.uint8), whole.scale.view(torch.uint8)[:16])


def test_a_scalar_cannot_be_packed() -> None:
    with pytest.raises(ShapeError, match=r"^a scalar cannot be packed: .*, found shape \(\)$"):
        PackedTensor.pack(torch.tensor(3.0), [torch.tensor(3.0)], SPECS["fp8"])
