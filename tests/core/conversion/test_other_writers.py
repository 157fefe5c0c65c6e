"""A checkpoint as llm-compressor writes it, packed here by hand, in ModelOpt's dialect."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import octavo
from helpers.conversions import values_of
from helpers.exporters_models import MLP, json_of, plain_model, tensors_of


def test_fp8_with_dynamic_inputs(tmp_path: Path) -> None:
    source = tmp_path / "llm_compressor"
    source.mkdir()
    model = plain_model(torch.bfloat16)
    tensors, expected = {}, {}
    for name, value in model.state_dict().items():
        tensors[name] = expected[name] = value.contiguous()
        if name.endswith("_proj.weight"):
            scale = (value.float().abs().amax(-1, keepdim=True) / 448).bfloat16()
            codes = (value.float() / scale.float()).to(torch.float8_e4m3fn)
            tensors |= {name: codes, f"{name}_scale": scale}
            expected[name] = codes.float() * scale.float()
    arguments = {"num_bits": 8, "type": "float", "symmetric": True, "observer": "minmax"}
    config = {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "version": "0.17.0",
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {**arguments, "strategy": "channel", "dynamic": False},
            "input_activations": {**arguments, "strategy": "token", "dynamic": True},
        }},
    }  # fmt: skip
    described = {**model.config.to_dict(), "dtype": "bfloat16", "quantization_config": config}
    (source / "config.json").write_text(json.dumps(described))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    report = octavo.convert_checkpoint(
        source, tmp_path / "out", target="vllm", dialect="unified_hf", quiet=True
    )

    assert report.changes == ()
    values = values_of(tmp_path / "out")
    assert values.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(values[name], expected[name].float())] == []
    assert tensors_of(tmp_path / "out")[f"{MLP}.weight_scale"].dtype == torch.float32
    found = json_of(tmp_path / "out" / "hf_quant_config.json")["quantization"]
    assert found["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
    assert found["exclude_modules"] == ["lm_head", "model.embed_tokens"]
    octavo.load_quantized(tmp_path / "out")
