"""The reader opens ModelOpt's own checkpoints and dequantizes each weight to what the oracle computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from octavo.core.evaluation.read_back import exporter_of
from octavo.core.packed import PackedTensor
from oracles import unified_hf as oracle

PRESETS = (
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "FP8_DEFAULT_CFG",
    "FP8_DEFAULT_CFG+FP8_KV_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "INT4_AWQ_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "INT8_WEIGHT_ONLY_CFG",
    "MXFP4_DEFAULT_CFG",
    "MXFP8_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG+FP8_KV_CFG",
    "W4A16_NVFP4_CFG",
    "W4A8_MXFP4_FP8_CFG",
    "W4A8_NVFP4_FP8_CFG",
)
ROUNDED_TWICE = "W4A8_AWQ_BETA_CFG"  # tests/end_to_end/test_smoothed_reference.py reads it
NOT_MADE = {("moe", "INT4_AWQ_CFG"), ("moe", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG")}
CASES = [(b, p) for b in ("dense", "tied", "moe") for p in PRESETS if (b, p) not in NOT_MADE]
NUM_QUANTIZED = {"dense": 14, "tied": 14, "moe": 32}


@pytest.mark.parametrize(("base", "preset"), CASES)
def test_every_weight_has_the_oracles_values(shared: Path, base: str, preset: str) -> None:
    directory = shared / "reference" / "modelopt" / base / preset
    checkpoint = exporter_of(directory).open(directory)
    stored = oracle.read_tensors(directory)

    found = dict(checkpoint.tensors())

    packed = {name: value for name, value in found.items() if isinstance(value, PackedTensor)}
    assert {name.removesuffix(".weight") for name in packed} == set(oracle.quantized_modules(stored))
    assert len(packed) == NUM_QUANTIZED[base]
    for name, value in packed.items():
        expected = oracle.dequantize(directory, stored, name.removesuffix(".weight"))
        values = value.dequantize().float().numpy()
        np.testing.assert_array_equal(
            oracle.as_bits(values, "bfloat16"), oracle.as_bits(expected, "bfloat16"), err_msg=name
        )


@pytest.mark.parametrize(("base", "preset"), CASES)
def test_the_rest_is_handed_over_as_it_is(shared: Path, base: str, preset: str) -> None:
    directory = shared / "reference" / "modelopt" / base / preset
    stored = oracle.read_tensors(directory)

    plain = {n: v for n, v in exporter_of(directory).open(directory).tensors() if isinstance(v, Tensor)}

    scales = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "k_scale", "v_scale")
    modules = oracle.quantized_modules(stored)
    expected = {n for n in stored if not n.endswith(scales) and n.removesuffix(".weight") not in modules}
    assert plain.keys() == expected
    for name, value in plain.items():
        np.testing.assert_array_equal(value.float().numpy(), stored[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize("base", ["dense", "tied", "moe"])
def test_every_reference_is_a_case(shared: Path, base: str) -> None:
    folders = {
        path.parent.name for path in (shared / "reference" / "modelopt" / base).glob("*/hf_quant_config.json")
    }

    assert folders - {ROUNDED_TWICE} == {preset for known, preset in CASES if known == base}


@pytest.mark.parametrize("base", ["dense", "tied"])
def test_scales_of_activations_and_caches(shared: Path, base: str) -> None:
    directory = shared / "reference" / "modelopt" / base / "FP8_DEFAULT_CFG+FP8_KV_CFG"
    stored = oracle.read_tensors(directory)

    activations = exporter_of(directory).open(directory).activations()

    kinds = [name.rpartition(".")[2] for name in activations]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "input_quantizer": 14,
        "k_bmm_quantizer": 2,
        "v_bmm_quantizer": 2,
    }
    for letter in "kv":
        amax = activations[f"model.layers.1.self_attn.{letter}_bmm_quantizer"].state["amax"].numpy()
        scale = stored[f"model.layers.1.self_attn.{letter}_proj.{letter}_scale"]
        np.testing.assert_array_equal(amax / np.float32(448), scale)
