"""What is written for engines that refuse a format in ModelOpt's dialect, and that it is what was simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.exporters_models import MLP, export, json_of, quantized, same, tensors_of, tokens
from octavo.core.errors import ExportError, ModeError
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedTensor


def with_rules(preset: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return octavo.merge_configs(preset, {"quant_cfg": list(rules)})


HEAD_OFF = {"quantizer_name": "*lm_head*", "enable": False}
DYNAMIC_INT8 = with_rules(
    "INT8_DEFAULT_CFG",
    {
        "quantizer_name": "*input_quantizer",
        "cfg": {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}},
    },
    HEAD_OFF,
)
INT4_CHANNEL = with_rules(
    "INT8_WEIGHT_ONLY_CFG",
    {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "axis": 0}},
    {"quantizer_name": "*", "parent_class": "nn.Embedding", "enable": False},
    HEAD_OFF,
)
# config, target, format, suffixes of a layer's tensors
CASES: dict[str, tuple[Any, str, str, set[str]]] = {
    "INT8": ("INT8_DEFAULT_CFG", "vllm", "int-quantized", {"weight", "weight_scale", "input_scale"}),
    "INT8 dynamic": (DYNAMIC_INT8, "sglang", "int-quantized", {"weight", "weight_scale"}),
    "W8A16": (
        "INT8_WEIGHT_ONLY_CFG", "vllm", "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"},
    ),
    "W4A16": (
        octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32), "vllm", "pack-quantized",
        {"weight_packed", "weight_scale", "weight_shape"},
    ),
    "W4A16 channel": (INT4_CHANNEL, "vllm", "pack-quantized", {"weight_packed", "weight_scale", "weight_shape"}),
    "FP8": ("FP8_DEFAULT_CFG", "transformers", "float-quantized", {"weight", "weight_scale", "input_scale"}),
    "FP8 channel": (
        "FP8_PER_CHANNEL_PER_TOKEN_CFG", "transformers", "float-quantized", {"weight", "weight_scale"},
    ),
    "MXFP4": ("MXFP4_MLP_WEIGHT_ONLY_CFG", "vllm", "mxfp4-pack-quantized", {"weight_packed", "weight_scale"}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_is_stored_is_what_was_simulated(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config, target, format_name, suffixes = CASES[case]
    model = quantized(config, dtype)
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target=target)

    assert report.exporter == "compressed_tensors"
    assert report.differences == (f"compressed-tensors {format_name} instead of ModelOpt's dialect",)
    names = tensors_of(tmp_path / "out").keys()
    assert {name.removeprefix(f"{MLP}.") for name in names if name.startswith(MLP)} == suffixes
    assert json_of(tmp_path / "out" / "config.json")["quantization_config"]["format"] == format_name

    with octavo.finalized(model, "compressed_tensors"), torch.no_grad():
        expected = {
            f"{name}.weight": layer.quantizers()["weight_quantizer"](layer.weight)
            for name, layer in quantized_layers(model)
        }
        logits = model(tokens()).logits
    found = {
        name: value.dequantize()
        for name, value in exporter_of(tmp_path / "out").open(tmp_path / "out").tensors()
        if isinstance(value, PackedTensor)
    }
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []
    with torch.no_grad():
        assert same(octavo.load_quantized(tmp_path / "out")(tokens()).logits, logits)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, None)])
def test_packed_integers_are_one_bit_string_with_an_offset(
    bits: int, block: int | None, tmp_path: Path
) -> None:
    config = (
        "INT8_WEIGHT_ONLY_CFG" if bits == 8 else octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)
    )
    model = quantized(config)
    weight = model.get_submodule(MLP).weight.detach().clone()  # type: ignore[union-attr]
    tensors = tensors_of(export(model, tmp_path / "out", target="vllm"))

    words = tensors[f"{MLP}.weight_packed"]
    assert (words.dtype, tensors[f"{MLP}.weight_shape"].tolist()) == (torch.int32, list(weight.shape))
    per_word = 32 // bits
    unsigned = words.long() & 0xFFFFFFFF
    codes = torch.stack([(unsigned >> (bits * i)) & (2**bits - 1) for i in range(per_word)], -1).flatten(-2)
    scale = tensors[f"{MLP}.weight_scale"].repeat_interleave(block or weight.shape[1], -1)
    expected = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal((codes - 2 ** (bits - 1)).float(), expected)


def test_scales_fit_the_dtype_in_which_engines_hold_them(tmp_path: Path) -> None:
    tensors = tensors_of(
        export(quantized("INT8_DEFAULT_CFG", torch.bfloat16), tmp_path / "out", target="vllm")
    )

    assert tensors[f"{MLP}.weight_scale"].dtype == torch.bfloat16
    assert tensors[f"{MLP}.weight_scale"].shape == (128, 1)
    assert tensors[f"{MLP}.input_scale"].dtype == torch.float32


def test_joined_layers_have_one_scale(tmp_path: Path) -> None:
    tensors = tensors_of(export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out", target="transformers"))

    assert len({float(tensors[f"model.layers.0.self_attn.{x}_proj.weight_scale"]) for x in "qkv"}) == 1


def test_metadata(tmp_path: Path) -> None:
    export(
        quantized(octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)),
        tmp_path / "out",
        target="vllm",
    )
    found = json_of(tmp_path / "out" / "config.json")["quantization_config"]
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False}

    (group,) = found["config_groups"].values()
    assert (group["targets"], group["input_activations"]) == (["Linear"], None)
    assert group["weights"] == {**weights, "group_size": 32}
    assert (found["quant_method"], found["quantization_status"]) == ("compressed-tensors", "compressed")
    assert found["ignore"] == ["lm_head", "model.embed_tokens"]
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


def test_refusals(tmp_path: Path) -> None:
    exporter = octavo.plugins().exporter("compressed_tensors")
    mixed = with_rules("INT8_DEFAULT_CFG", {"quantizer_name": "*down_proj.input_quantizer", "enable": False})
    cases = {
        r"weights e3m2 block\{-1:32\} .* are not written, found in model\.layers\.0": "MXFP6_DEFAULT_CFG",
        r"one format of all layers; found weights int8 channel0, inputs int8 tensor: .*; weights int8 channel0, "
        r"inputs None: model\.layers\.0\.mlp\.down_proj": mixed,
        r"self_attn: this dialect is written for a weight .*\{'k_bmm_quantizer': \['e4m3 tensor'\]": (
            octavo.merge_configs("INT8_DEFAULT_CFG", "FP8_KV_CFG")
        ),
    }
    for message, config in cases.items():
        with pytest.raises(ExportError, match=message):
            exporter.export(quantized(config), tmp_path / "out", quiet=True)
    with pytest.raises(ModeError, match="the model is not quantized"):
        exporter.export(torch.nn.Linear(2, 2), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_which_exporter_writes() -> None:
    model = octavo.unquantize(quantized("INT8_DEFAULT_CFG"))

    assert octavo.plan(model, "INT8_DEFAULT_CFG", target="vllm").exporter == "compressed_tensors"
    assert octavo.plan(model, "FP8_DEFAULT_CFG", target="vllm").exporter == "unified_hf"
