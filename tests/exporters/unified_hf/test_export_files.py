"""What an export writes: tensors, dtypes, shards, companions, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo
from helpers.exporters_models import (
    export,
    json_of,
    plain_model,
    quantized,
    same,
    tensors_of,
)

KV = octavo.merge_configs(octavo.NVFP4_DEFAULT_CFG, octavo.FP8_KV_CFG)


def test_the_report_and_the_files(tmp_path: Path) -> None:
    report = octavo.export_hf_checkpoint(
        quantized("FP8_DEFAULT_CFG"), export_dir=str(tmp_path / "out"), quiet=True
    )
    tensors = tensors_of(tmp_path / "out")

    assert report == type(report)(
        tmp_path / "out", 49, sum(t.nbytes for t in tensors.values()), (), "unified_hf"
    )
    assert (
        len(tensors) == 7 * 2 * 3 + 2 * 2 + 3
    )  # layers with two scales each, norms, embedding, last norm, head
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
        "model.safetensors",
        "octavo_manifest.json",
        "report.html",
        "report.json",
    ]


def test_the_tokenizer_is_written_when_given(stories: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories)
    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    export(model, tmp_path / "out", tokenizer=AutoTokenizer.from_pretrained(stories))

    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Once").input_ids == [1, 403]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dtype_casts_what_is_not_quantized_and_nothing_else(dtype: torch.dtype, tmp_path: Path) -> None:
    model = quantized(KV)
    own, cast = (tensors_of(export(model, tmp_path / str(d), dtype=d)) for d in (None, dtype))
    state = plain_model().state_dict()

    assert own.keys() == cast.keys()
    plain = [name for name in own if name in state and own[name].dtype == torch.float32]
    assert len(plain) == 2 * 2 + 3
    for name in own:
        expected = own[name].to(dtype) if name in plain else own[name]
        assert same(cast[name], expected), name
    assert json_of(tmp_path / str(dtype) / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    assert octavo.load_quantized(tmp_path / str(dtype)).dtype == dtype


def test_layers_that_rules_left_out_are_excluded_by_name(tmp_path: Path) -> None:
    config = octavo.FP8_DEFAULT_CFG
    config["quant_cfg"].append({"quantizer_name": "model.layers.1.*", "enable": False})
    directory = export(quantized(config), tmp_path / "out")

    excluded = json_of(directory / "hf_quant_config.json")["quantization"]["exclude_modules"]
    layers = [f"mlp.{name}_proj" for name in ("down", "gate", "up")] + [f"self_attn.{x}_proj" for x in "koqv"]
    assert excluded == ["lm_head", "model.embed_tokens", *(f"model.layers.1.{name}" for name in layers)]


def test_quantizers_that_were_switched_off_leave_no_trace(tmp_path: Path) -> None:
    model = quantized("NVFP4_DEFAULT_CFG")
    for name, module in model.named_modules():
        if name.endswith("input_quantizer"):
            module.enabled = False

    directory = export(model, tmp_path / "out")

    assert json_of(directory / "hf_quant_config.json")["quantization"]["quant_algo"] == "W4A16_NVFP4"
    assert not [name for name in tensors_of(directory) if name.endswith("input_scale")]


def test_a_plain_module_gets_metadata_and_its_own_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    directory = export(model, tmp_path / "out")

    assert sorted(tensors_of(directory)) == [
        "0.bias",
        "0.weight",
        "0.weight_scale",
        "2.bias",
        "2.weight",
        "2.weight_scale",
    ]
    assert json_of(directory / "config.json").keys() == {"dtype", "quantization_config"}


def test_without_a_dtype_every_tensor_keeps_its_own(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.full((1,), 1 + 2.0**-20))
            self.linear = nn.Linear(64, 32, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.temperature

    model = octavo.quantize(Scaled(), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    tensors = tensors_of(export(model, tmp_path / "out"))

    assert {name: tensors[name].dtype for name in ("temperature", "linear.bias")} == {
        "temperature": torch.float32,
        "linear.bias": torch.bfloat16,
    }
