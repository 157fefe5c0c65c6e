"""A checkpoint that the compressed-tensors library writes, as llm-compressor does, is read as the library reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from helpers.exporters_models import plain_model, same, tokens
from octavo.core.model.shard_reader import read_json
from octavo.core.packed import PackedAffine, PackedTensor
from octavo.exporters.compressed_tensors.metadata_reader import read_metadata
from octavo.exporters.compressed_tensors.reader import CompressedTensorsCheckpoint
from octavo.exporters.compressed_tensors.spelling import spell

PROGRAM = Path(__file__).parents[2] / "helpers" / "compressed_tensors_writer.py"
INT = {"type": "int", "symmetric": True}
FLOAT = {"type": "float", "symmetric": True}
NVFP4 = {
    **FLOAT,
    "num_bits": 4,
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
}
MXFP4 = {**FLOAT, "num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
FP8_GROUP = {**FLOAT, "num_bits": 8, "strategy": "group", "group_size": 128, "dynamic": True}
INT8_TOKEN = {**INT, "num_bits": 8, "strategy": "token", "dynamic": True}
FP8 = {**FLOAT, "num_bits": 8, "strategy": "tensor"}
# weights, inputs of each projection
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "q_proj": ({**INT, "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, None),
    "k_proj": ({**INT, "num_bits": 3, "strategy": "group", "group_size": 32, "actorder": "static"}, None),
    "v_proj": (NVFP4, {**NVFP4, "dynamic": "local"}),
    "o_proj": ({**FLOAT, "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}, FP8_GROUP),
    "gate_proj": (MXFP4, None),
    "up_proj": ({**INT, "num_bits": 8, "strategy": "channel"}, INT8_TOKEN),
    "down_proj": (FP8, FP8),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CompressedTensorsCheckpoint:
    root = tmp_path_factory.mktemp("library")
    plain_model(torch.bfloat16).save_pretrained(root / "model")
    groups = {
        name: {"targets": [f"re:.*{name}$"], "weights": weights, "input_activations": inputs}
        for name, (weights, inputs) in FORMATS.items()
    }
    command = [sys.executable, "-I", PROGRAM, root / "model", json.dumps(groups), root / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return CompressedTensorsCheckpoint(root / "out")


def test_weights_are_what_the_library_makes_of_them(checkpoint: CompressedTensorsCheckpoint) -> None:
    """Equal, but NVFP4's in a last bit of bf16 at most: its reader divides by what Octavo and engines multiply with."""
    expected = load_file(checkpoint.directory / "expected.safetensors")

    packed = dict(checkpoint.tensors())
    found = {name: value.dequantize() for name, value in packed.items() if not isinstance(value, Tensor)}

    assert found.keys() == expected.keys()
    unequal = {name for name in expected if not torch.equal(found[name], expected[name])}
    assert {name.split(".")[-2] for name in unequal} <= {"v_proj"}
    assert all(
        float((found[n] - expected[n]).abs().max()) <= 2**-7 * float(expected[n].abs().max()) for n in unequal
    )
    kinds = {name.split(".")[-2]: type(value) for name, value in packed.items() if name in expected}
    assert kinds == {**dict.fromkeys(FORMATS, PackedTensor), "q_proj": PackedAffine}


def test_the_same_bytes_are_written(checkpoint: CompressedTensorsCheckpoint) -> None:
    """What is read and spelled again is what the library wrote, but for divisors without an exact reciprocal."""
    stored = load_file(checkpoint.directory / "model.safetensors")
    group_of = read_metadata(read_json(checkpoint.directory / "config.json"), checkpoint.directory).group_of
    compared = 0
    for name, packed in checkpoint.tensors():
        if isinstance(packed, Tensor):
            continue
        module = name.removesuffix(".weight")
        for suffix, tensor in spell(packed, group_of(module).format.name).items():
            if suffix == "weight_global_scale":
                assert tensor.item() == pytest.approx(stored[f"{module}.{suffix}"].item(), rel=2**-22)
            else:
                assert same(tensor, stored[f"{module}.{suffix}"]), f"{module}.{suffix}"
            compared += 1

    assert compared == 2 * (4 + 3 + 3 + 2 + 2 + 2 + 2)


def test_patterns_tell_the_groups_apart(checkpoint: CompressedTensorsCheckpoint) -> None:
    layers = {name.rpartition(".")[2]: str(layer.weight) for name, layer in checkpoint.layers.items()}

    assert layers == {
        "q_proj": "uint4 block{-1:32}",
        "k_proj": "int3 block{-1:32}",
        "v_proj": "e2m1 block{-1:16} e4m3·global dynamic",
        "o_proj": "e4m3 block{-1:128,-2:128}",
        "gate_proj": "e2m1 block{-1:32} e8m0 dynamic",
        "up_proj": "int8 channel0",
        "down_proj": "e4m3 tensor",
    }
    assert {name.rpartition(".")[2] for name, layer in checkpoint.layers.items() if layer.zero_points} == {
        "q_proj"
    }


def test_scales_of_inputs(checkpoint: CompressedTensorsCheckpoint) -> None:
    states = checkpoint.activations()
    prefix = "model.layers.0"

    assert states[f"{prefix}.self_attn.v_proj.input_quantizer"].state["global_amax"] == pytest.approx(
        2688 / 300
    )
    stored = float(torch.tensor(0.05).bfloat16())
    assert states[f"{prefix}.mlp.down_proj.input_quantizer"].state["amax"] == pytest.approx(448 * stored)
    assert states[f"{prefix}.mlp.up_proj.input_quantizer"].state == {}
    assert f"{prefix}.self_attn.q_proj.input_quantizer" not in states


def test_a_model_is_made_of_it(checkpoint: CompressedTensorsCheckpoint) -> None:
    with torch.no_grad():
        assert octavo.load_quantized(checkpoint.directory)(tokens()).logits.isfinite().all()
