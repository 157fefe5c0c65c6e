"""Packed weights under the dialect's names, dtypes and layouts, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.exporters_models import same
from octavo.core.errors import CheckpointError
from octavo.core.formats import compute_amax
from octavo.core.packed import PackedTensor
from octavo.exporters.unified_hf.schemes import Scheme, schemes
from octavo.exporters.unified_hf.spelling import spell, unspell

E4M3, U8, I8, F32 = torch.float8_e4m3fn, torch.uint8, torch.int8, torch.float32
ROWS, COLUMNS = 256, 384
# Dtypes and shapes of unified-hf.md section 4 for a weight of 256 x 384, blocks of 32 where they are open.
LAYOUTS = {
    "FP8": {"weight": (E4M3, (256, 384)), "weight_scale": (F32, ())},
    "FP8_PER_CHANNEL_PER_TOKEN": {"weight": (E4M3, (256, 384)), "weight_scale": (F32, (256,))},
    "fp8_pb_wo": {"weight": (E4M3, (256, 384)), "weight_scale": (F32, (2, 1, 3, 1))},
    "W8A8_SQ_PER_CHANNEL": {"weight": (I8, (256, 384)), "weight_scale": (F32, (256,))},
    "W8A16": {"weight": (I8, (256, 384)), "weight_scale": (F32, (256,))},
    "W4A16_AWQ": {"weight": (U8, (128, 384)), "weight_scale": (F32, (256, 12))},
    "W4A8_AWQ": {"weight": (U8, (128, 384)), "weight_scale": (F32, (256, 12))},
    "NVFP4_AWQ": {"weight": (U8, (256, 192)), "weight_scale": (E4M3, (256, 24)), "weight_scale_2": (F32, ())},
    "NVFP4_SVD": {"weight": (U8, (256, 192)), "weight_scale": (E4M3, (256, 24)), "weight_scale_2": (F32, ())},
    "NVFP4": {"weight": (U8, (256, 192)), "weight_scale": (E4M3, (256, 24)), "weight_scale_2": (F32, ())},
    "W4A16_NVFP4": {
        "weight": (U8, (256, 192)),
        "weight_scale": (E4M3, (256, 12)),
        "weight_scale_2": (F32, ()),
    },
    "W4A8_NVFP4_FP8": {
        "weight": (U8, (256, 192)),
        "weight_scale": (E4M3, (256, 12)),
        "weight_scale_2": (F32, ()),
    },
    "MXFP8": {"weight": (E4M3, (256, 384)), "weight_scale": (U8, (256, 12))},
    "mxfp4": {"weight": (U8, (256, 192)), "weight_scale": (U8, (256, 12))},
    "W4A8_MXFP4_FP8": {"weight": (U8, (256, 192)), "weight_scale": (U8, (256, 12))},
    "W4A16_MXFP4": {"weight": (U8, (256, 192)), "weight_scale": (U8, (256, 12))},
    "MXFP6": {"weight": (U8, (256, 288)), "weight_scale": (U8, (256, 12))},
    "MXINT8": {"weight": (I8, (256, 384)), "weight_scale": (U8, (256, 12))},
}


def packed(
    scheme: Scheme, shape: tuple[int, int] = (ROWS, COLUMNS), dtype: torch.dtype = F32
) -> PackedTensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    spec = scheme.weight_with_block(32)
    values = {"amax": compute_amax(weight, spec), "global_amax": weight.abs().amax().float()}
    return PackedTensor.pack(weight, [values[name] for name in spec.state], spec)


def equal(first: PackedTensor, second: PackedTensor) -> bool:
    """Whether two packed tensors are the same in every part."""
    parts = [(getattr(first, name), getattr(second, name)) for name in ("payload", "scale", "global_scale")]
    return all((a is b is None) or same(a, b) for a, b in parts) and (
        first.spec,
        first.shape,
        first.dtype,
    ) == (second.spec, second.shape, second.dtype)


def named(quant_algo: str) -> Scheme:
    return next(scheme for scheme in schemes() if scheme.quant_algo == quant_algo)


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.quant_algo)
def test_layout(scheme: Scheme) -> None:
    spelled = spell(packed(scheme))

    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in spelled.items()} == LAYOUTS[
        scheme.quant_algo
    ]
    assert all(tensor.is_contiguous() for tensor in spelled.values())


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (128, 128), (2, 96)], ids=str)
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.quant_algo)
def test_reading_undoes_writing(scheme: Scheme, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    written = packed(scheme, shape, dtype)

    assert equal(unspell(spell(written), written.spec, dtype, "x"), written)


@pytest.mark.parametrize("shape", [(200, 300), (1, 129), (129, 1)], ids=str)
def test_square_blocks_at_the_edge(shape: tuple[int, int]) -> None:
    written = packed(named("fp8_pb_wo"), shape)
    spelled = spell(written)

    assert tuple(spelled["weight_scale"].shape) == (-(-shape[0] // 128), 1, -(-shape[1] // 128), 1)
    assert equal(unspell(spelled, written.spec, F32, "x"), written)


@pytest.mark.parametrize("shape", [(128, 128), (5, 7)], ids=str)
def test_a_single_square_block_has_a_scalar_scale(shape: tuple[int, int]) -> None:
    written = packed(named("fp8_pb_wo"), shape)
    spelled = spell(written)

    assert spelled["weight_scale"].shape == ()
    assert equal(unspell(spelled, written.spec, F32, "x"), written)
    # The peer squeezes it, others need not.
    assert equal(
        unspell(
            {**spelled, "weight_scale": spelled["weight_scale"].reshape(1, 1, 1, 1)}, written.spec, F32, "x"
        ),
        written,
    )


def columns_of(payload: Tensor) -> np.ndarray:
    """Return the 4-bit codes of a payload packed along columns, even column in the low nibble."""
    low, high = payload.numpy() & 0xF, payload.numpy() >> 4
    return np.stack([low, high], -1).reshape(payload.shape[0], -1)


def test_int4_bytes_hold_two_rows() -> None:
    written = packed(named("W4A16_AWQ"))
    codes = columns_of(written.payload)

    expected = codes[0::2] | (codes[1::2] << 4)

    np.testing.assert_array_equal(spell(written)["weight"].numpy(), expected)


@pytest.mark.parametrize("quant_algo", ["NVFP4", "mxfp4"])
def test_fp4_bytes_hold_two_columns(quant_algo: str) -> None:
    written = packed(named(quant_algo))

    np.testing.assert_array_equal(columns_of(spell(written)["weight"]), columns_of(written.payload))


@pytest.mark.parametrize("suffix", ["weight", "weight_scale", "weight_scale_2"])
def test_a_missing_tensor_is_named(suffix: str) -> None:
    written = packed(named("NVFP4"))
    spelled = {name: tensor for name, tensor in spell(written).items() if name != suffix}

    with pytest.raises(
        CheckpointError, match=rf"^a file: {suffix} is missing, which e2m1 block\{{-1:16\}} .* needs$"
    ):
        unspell(spelled, written.spec, F32, "a file")
