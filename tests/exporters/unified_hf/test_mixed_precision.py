"""A model with several formats: described layer by layer, written, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import octavo
from helpers.exporters_models import export, json_of, quantized, tokens
from octavo.core.modules import quantized_layers
from oracles import unified_hf as oracle

FP8 = {"num_bits": (4, 3)}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
INT4 = {"num_bits": 4, "block_sizes": {-1: 64}}
CONFIG: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*mlp.*_proj.weight_quantizer", "cfg": FP8},
        {"quantizer_name": "*mlp.*_proj.input_quantizer", "cfg": FP8},
        {"quantizer_name": "*self_attn.[qkv]_proj.weight_quantizer", "cfg": NVFP4},
        {"quantizer_name": "*self_attn.[qkv]_proj.input_quantizer", "cfg": NVFP4},
        {"quantizer_name": "model.layers.0.self_attn.o_proj.weight_quantizer", "cfg": INT4},
        {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": FP8},
    ],
    "algorithm": "max",
}
LAYERS = {
    **{
        f"model.layers.{i}.{name}": algorithm
        for i in range(2)
        for names, algorithm in (
            (("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"), {"quant_algo": "FP8"}),
            (
                ("self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"),
                {"quant_algo": "NVFP4", "group_size": 16},
            ),
        )
        for name in names
    },
    "model.layers.0.self_attn.o_proj": {"quant_algo": "W4A16_AWQ", "group_size": 64},
}
EXCLUDED = ["lm_head", "model.embed_tokens", "model.layers.1.self_attn.o_proj"]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return quantized(CONFIG, torch.bfloat16)


@pytest.fixture(scope="module")
def directory(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("mixed") / "out")


def test_both_files_list_every_layer(directory: Path) -> None:
    nested = json_of(directory / "hf_quant_config.json")["quantization"]
    flat = json_of(directory / "config.json")["quantization_config"]

    assert nested["quant_algo"] == flat["quant_algo"] == "MIXED_PRECISION"
    assert nested["quantized_layers"] == flat["quantized_layers"] == LAYERS
    assert nested["exclude_modules"] == flat["ignore"] == EXCLUDED
    assert nested["kv_cache_quant_algo"] == "FP8"
    assert flat["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}


def test_bytes_stand_for_the_finalized_weights(model: torch.nn.Module, directory: Path) -> None:
    tensors = oracle.read_tensors(directory)
    assert set(oracle.quantized_modules(tensors)) == LAYERS.keys()

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        for name, layer in quantized_layers(model):
            if name in LAYERS:
                fake = layer.weight_quantizer(layer.weight).float().numpy()
                stored = oracle.as_bits(oracle.dequantize(directory, tensors, name), "bfloat16")
                np.testing.assert_array_equal(stored, oracle.as_bits(fake, "bfloat16"), err_msg=name)


@pytest.mark.parametrize("files", [2, 1], ids=["both files", "config.json only"])
def test_the_reader_gets_the_same_model(
    model: torch.nn.Module, directory: Path, tmp_path: Path, files: int
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in directory.iterdir():
        if files == 2 or path.name != "hf_quant_config.json":
            (copy / path.name).hardlink_to(path)

    served = octavo.load_quantized(copy)

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(tokens()).logits, model(tokens()).logits)
