"""What is written for engines that refuse a format in ModelOpt's dialect, and that it is what was simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.compressed_tensors_cases import CASES, FP8_KV, INT8, config, integers, rules
from helpers.exporters_models import MLP, export, json_of, quantized, same, tensors_of, tokens
from octavo.core.errors import ExportError, ModeError
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers
from octavo.core.packed import PackedTensor

# Presets that a target gets in this dialect; its name, format
TARGETS: dict[str, tuple[Any, str, str]] = {
    "INT8": ("INT8_DEFAULT_CFG", "vllm", "int-quantized"),
    "W8A16": ("INT8_WEIGHT_ONLY_CFG", "vllm", "pack-quantized"),
    "W4A16": (octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32), "sglang", "pack-quantized"),
    "MXFP4": ("MXFP4_MLP_WEIGHT_ONLY_CFG", "vllm", "mxfp4-pack-quantized"),
    "FP8": ("FP8_DEFAULT_CFG", "transformers", "float-quantized"),
    "FP8 blocks": ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "transformers", "naive-quantized"),
    "FP8 cache": (octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG"), "transformers", "float-quantized"),
    "NVFP4": ("NVFP4_DEFAULT_CFG", "transformers", "nvfp4-pack-quantized"),
    "MXFP8": ("MXFP8_DEFAULT_CFG", "transformers", "mxfp8-quantized"),
}
DTYPES = {
    **dict.fromkeys(CASES, torch.bfloat16),
    "W4A16": torch.float16,
    "NVFP4": torch.float32,
    "FP8": torch.float32,
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_load_a_format_from_this_dialect_get_it(case: str, tmp_path: Path) -> None:
    config, target, format_name = TARGETS[case]
    report = octavo.export_hf_checkpoint(
        quantized(config), export_dir=tmp_path / "out", quiet=True, target=target
    )

    assert report.exporter == "compressed_tensors"
    assert f"compressed-tensors {format_name} instead of ModelOpt's dialect" in report.differences
    assert json_of(tmp_path / "out" / "config.json")["quantization_config"]["format"] == format_name


@pytest.mark.parametrize("case", CASES)
def test_what_is_stored_is_what_was_simulated(case: str, tmp_path: Path) -> None:
    config, format_name, suffixes = CASES[case]
    model, out = quantized(config, DTYPES[case]), tmp_path / "out"
    octavo.plugins().exporter("compressed_tensors").export(model, out, quiet=True)

    names = tensors_of(out).keys()
    assert {name.removeprefix(f"{MLP}.") for name in names if name.startswith(MLP)} == suffixes
    assert json_of(out / "config.json")["quantization_config"]["format"] == format_name
    with octavo.finalized(model, "compressed_tensors"), torch.no_grad():
        expected = {
            f"{name}.weight": layer.quantizers()["weight_quantizer"](layer.weight)
            for name, layer in quantized_layers(model)
            if layer.quantized_weights()
        }
        logits = model(tokens()).logits
    found = {
        name: value.dequantize()
        for name, value in exporter_of(out).open(out).tensors()
        if isinstance(value, PackedTensor)
    }
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same(found[name], expected[name])] == []
    with torch.no_grad():
        assert same(octavo.load_quantized(out)(tokens()).logits, logits)


def export_as_it_is(model: torch.nn.Module, folder: Path) -> Path:
    """Export in this dialect and return the folder."""
    octavo.plugins().exporter("compressed_tensors").export(model, folder, quiet=True)
    return folder


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


def test_divisors_of_block_scales(tmp_path: Path) -> None:
    tensors = tensors_of(export_as_it_is(quantized(CASES["NVFP4"][0], torch.bfloat16), tmp_path / "out"))
    module = "model.layers.0.self_attn"

    divisors = [tensors[f"{module}.{x}_proj.weight_global_scale"] for x in "qkv"]

    assert (divisors[0].dtype, divisors[0].shape) == (torch.float32, (1,))
    assert torch.equal(divisors[0], divisors[1])
    assert torch.equal(divisors[0], divisors[2])
    # The largest block scale is the largest of E4M3, and the largest code 6: the divisor is 2688 over the maximum.
    weights = [quantized(CASES["NVFP4"][0]).get_submodule(f"{module}.{x}_proj").weight for x in "qkv"]
    largest = max(float(weight.detach().bfloat16().abs().max()) for weight in weights)
    assert divisors[0].item() == pytest.approx(2688 / largest, rel=2**-20)
    assert tensors[f"{module}.q_proj.input_global_scale"].item() > 1


def test_metadata_of_a_mixture_with_a_cache(tmp_path: Path) -> None:
    mixture, _, _ = CASES["mixture"]
    model = quantized({**mixture, "quant_cfg": [*mixture["quant_cfg"], *FP8_KV]})
    out = export_as_it_is(model, tmp_path / "out")
    found = json_of(out / "config.json")["quantization_config"]
    groups = {group["format"]: group for group in found["config_groups"].values()}

    assert groups.keys() == {"pack-quantized", "nvfp4-pack-quantized", "float-quantized"}
    assert groups["float-quantized"]["targets"] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert groups["nvfp4-pack-quantized"]["input_activations"] == {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "dynamic": "local",
        "scale_dtype": "torch.float8_e4m3fn", "group_size": 16,
    }  # fmt: skip
    assert found["kv_cache_scheme"] == {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False,
    }  # fmt: skip
    tensors = tensors_of(out)
    assert {tuple(tensors[f"model.layers.{i}.self_attn.{x}_scale"].shape) for i in (0, 1) for x in "kv"} == {
        (1,)
    }
    described = exporter_of(out).open(out).describe()
    assert described["layers"] == {
        "nvfp4-pack-quantized": 8,
        "float-quantized": 2,
        "pack-quantized": 4,
    }
    assert described["cache"] == "e4m3 tensor"


def test_scales_below_zero_stay_so(tmp_path: Path) -> None:
    """They put the longer side of an integer format on the positive values."""
    model = quantized(CASES["W4A16"][0], torch.bfloat16)
    quantizer = model.get_submodule(f"{MLP}.weight_quantizer")
    quantizer.set_state(amax=-quantizer.named_state()["amax"])
    tensors = tensors_of(export_as_it_is(model, tmp_path / "out"))

    assert (tensors[f"{MLP}.weight_scale"] < 0).all()
    with octavo.finalized(model, "compressed_tensors"), torch.no_grad():
        expected = quantizer(model.get_submodule(MLP).weight)
    read = octavo.load_quantized(tmp_path / "out").get_parameter(f"{MLP}.weight")
    assert same(read.detach(), expected)


def test_refusals(tmp_path: Path) -> None:
    exporter = octavo.plugins().exporter("compressed_tensors")
    keys = {"quantizer_name": "*k_bmm_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}}
    int8_cache = {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": INT8}
    int8 = rules(integers(8), INT8)
    cases = {
        r"weights e3m2 block\{-1:32\} .* are not written, found in model\.layers\.0": "MXFP6_DEFAULT_CFG",
        r"self_attn: this dialect is written with a cache of e4m3 tensor for keys and values both; found "
        r"\{'k_bmm_quantizer': \['e4m3 tensor'\]\}": config(int8, [keys]),
        r"self_attn: .* found \{'k_bmm_quantizer': \['int8 tensor'\], 'v_bmm_quantizer': \['int8 tensor'\]\}": (
            config(int8, [int8_cache])
        ),
        "written for models with quantized weights of linear layers; found none": config(FP8_KV),
    }
    for message, recipe in cases.items():
        with pytest.raises(ExportError, match=message):
            exporter.export(quantized(recipe), tmp_path / "out", quiet=True)
    with pytest.raises(ModeError, match="the model is not quantized"):
        exporter.export(torch.nn.Linear(2, 2), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_which_exporter_writes() -> None:
    model = octavo.unquantize(quantized("INT8_DEFAULT_CFG"))

    assert octavo.plan(model, "INT8_DEFAULT_CFG", target="vllm").exporter == "compressed_tensors"
    assert octavo.plan(model, "FP8_DEFAULT_CFG", target="vllm").exporter == "unified_hf"
