"""A checkpoint as llm-compressor writes it: fields that Octavo leaves out, and scales of its convention."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import octavo
from helpers.exporters_models import plain_model
from octavo.core.packed import PackedTensor


def test_int8_with_dynamic_activations(tmp_path: Path) -> None:
    model = plain_model(torch.bfloat16)
    tensors, expected = {}, {}
    for name, value in model.state_dict().items():
        tensors[name] = value.contiguous()
        if name.endswith("_proj.weight"):
            scale = (value.float().abs().amax(-1, keepdim=True) / 127.5).bfloat16()
            codes = (value.float() / scale.float()).round().clamp(-128, 127)
            tensors |= {name: codes.to(torch.int8), f"{name}_scale": scale}
            expected[name] = (codes * scale.float()).bfloat16()
    arguments = {
        "num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "block_structure": None, "actorder": None,
        "observer": "minmax", "observer_kwargs": {}, "scale_dtype": None, "zp_dtype": None,
    }  # fmt: skip
    config = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {}, "version": "0.17.0",
        "config_groups": {"group_0": {
            "targets": ["Linear"], "output_activations": None,
            "weights": {**arguments, "strategy": "channel", "dynamic": False},
            "input_activations": {**arguments, "strategy": "token", "dynamic": True},
        }},
    }  # fmt: skip
    described = {**model.config.to_dict(), "dtype": "bfloat16", "quantization_config": config}
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    checkpoint = octavo.plugins().exporter("compressed_tensors").open(tmp_path)

    found = {n: v.dequantize() for n, v in checkpoint.tensors() if isinstance(v, PackedTensor)}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(checkpoint.activations()) == len(expected)
    assert checkpoint.describe()["inputs"] == "int8 token dynamic"
    read = octavo.load_quantized(tmp_path)
    assert torch.equal(
        read.get_parameter("model.layers.0.mlp.up_proj.weight"), expected["model.layers.0.mlp.up_proj.weight"]
    )
