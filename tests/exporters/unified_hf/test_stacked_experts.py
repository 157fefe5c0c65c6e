"""Experts whose framework holds them in one tensor: what is written of them, and what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.adapters_models import tiny_model, tokens
from helpers.exporters_models import export, tensors_of, with_tensors
from octavo.core.errors import CheckpointError, ExportError

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT_OSS = "model.layers.0.mlp.experts.down_proj"  # [experts, in, out] = [4, 128, 64]


def plain(model_type: str) -> nn.Module:
    return tiny_model(model_type, **SIZES).to(torch.bfloat16)


def written(
    model_type: str, config: Any, directory: Path, **options: Any
) -> tuple[nn.Module, dict[str, Tensor]]:
    model = octavo.quantize(plain(model_type), config, [tokens()], quiet=True)
    return model, tensors_of(export(model, directory, **options))


@pytest.mark.parametrize(
    ("model_type", "experts"),
    [("gpt_oss", "model.layers.0.mlp.experts"), ("llama4_text", "model.layers.0.feed_forward.experts")],
)
def test_fp8_has_one_scale_for_a_stack(model_type: str, experts: str, tmp_path: Path) -> None:
    """As ModelOpt 0.47 writes it: its bytes of the same models were compared by hand, all equal."""
    model, found = written(model_type, octavo.FP8_DEFAULT_CFG, tmp_path / "out")

    for name in (f"{experts}.gate_up_proj", f"{experts}.down_proj"):
        weights = model.get_parameter(name)
        scale = weights.abs().amax().float() / 448
        assert torch.equal(found[f"{name}_weight_scale"], scale)
        assert torch.equal(found[name].float(), (weights / scale[None]).to(torch.float8_e4m3fn).float())
        assert found[f"{name}_input_scale"].shape == ()


def test_nvfp4_has_blocks_along_the_inputs(tmp_path: Path) -> None:
    model, found = written("gpt_oss", octavo.NVFP4_DEFAULT_CFG, tmp_path / "out")
    codes, scale = found[GPT_OSS], found[f"{GPT_OSS}_weight_scale"]

    second = found[f"{GPT_OSS}_weight_scale_2"]
    largest = model.get_parameter(GPT_OSS).float().unflatten(1, (8, 16)).abs().amax(2)

    assert (codes.shape, codes.dtype) == ((4, 64, 64), torch.uint8)
    assert torch.equal(second, model.get_parameter(GPT_OSS).abs().amax().float() / 2688)
    assert torch.equal(scale.float(), (largest / (6 * second)).to(torch.float8_e4m3fn).float())


def test_granite_moe_is_taken_apart_under_the_models_own_names(tmp_path: Path) -> None:
    model, found = written("granitemoe", octavo.INT8_DEFAULT_CFG, tmp_path / "out")
    experts = "model.layers.0.block_sparse_moe.experts"
    up = model.get_parameter(f"{experts}.gate_up_proj")[3, 128:]

    scale = found[f"{experts}.3.up_proj.weight_scale"]

    assert torch.equal(scale, up.float().abs().amax(1) / 127)
    assert torch.equal(
        found[f"{experts}.3.up_proj.weight"], (up.float() / scale[:, None]).round().to(torch.int8)
    )
    assert not [name for name in found if "_linear" in name or "gate_up_proj" in name]


def test_experts_left_out_keep_the_frameworks_names(tmp_path: Path) -> None:
    off = {"quant_cfg": [{"quantizer_name": "*.experts.*", "enable": False}]}
    model, found = written("granitemoe", octavo.merge_configs(octavo.FP8_DEFAULT_CFG, off), tmp_path / "out")

    stack = model.get_parameter("model.layers.0.block_sparse_moe.experts.down_proj")

    assert torch.equal(found["model.layers.0.block_sparse_moe.output_linear.weight"], stack)
    assert octavo.load_quantized(tmp_path / "out") is not None


def test_a_mixed_checkpoint_is_read_by_the_experts_common_name(tmp_path: Path) -> None:
    """So ModelOpt's metadata calls them, while Octavo's name every parameter."""
    fp8 = {"num_bits": (4, 3), "axis": None}
    rules = [{"quantizer_name": f"*self_attn*{kind}_quantizer", "cfg": fp8} for kind in ("weight", "input")]
    model, _ = written(
        "gpt_oss", octavo.merge_configs(octavo.NVFP4_DEFAULT_CFG, {"quant_cfg": rules}), tmp_path / "out"
    )
    file = tmp_path / "out" / "hf_quant_config.json"
    ours = octavo.load_quantized(tmp_path / "out").get_parameter(GPT_OSS)

    text = file.read_text()
    for name in ("gate_up_proj", "down_proj"):
        text = text.replace(f"mlp.experts.{name}", "mlp.experts")
    file.write_text(text)

    assert torch.equal(octavo.load_quantized(tmp_path / "out").get_parameter(GPT_OSS), ours)
    assert not torch.equal(ours, model.get_parameter(GPT_OSS))


def test_damaged_stacks_are_named(tmp_path: Path) -> None:
    _, found = written("gpt_oss", octavo.FP8_DEFAULT_CFG, tmp_path / "out")
    damages: dict[str, dict[str, Any]] = {
        rf"{GPT_OSS}.* holds codes .* {GPT_OSS}_weight_scale is missing": {f"{GPT_OSS}_weight_scale": None},
        rf"{GPT_OSS}.* must have the dims experts, in, out; found shape \(512, 64\)": {
            GPT_OSS: found[GPT_OSS].flatten(0, 1)
        },
        rf"{GPT_OSS}.*weight_scale of .* has shape \(\), found \(4,\)": {
            f"{GPT_OSS}_weight_scale": torch.ones(4)
        },
    }

    for message, changes in damages.items():

        def damage(tensors: dict[str, Tensor], changes: dict[str, Any] = changes) -> None:
            tensors.update({**found, **changes})
            for name in [name for name, tensor in tensors.items() if tensor is None]:
                del tensors[name]

        with pytest.raises(CheckpointError, match=message):
            octavo.load_quantized(with_tensors(tmp_path / "out", damage))


def test_a_format_without_a_form_for_stacks_is_not_misread(tmp_path: Path) -> None:
    written("gpt_oss", octavo.FP8_DEFAULT_CFG, tmp_path / "out")
    file = tmp_path / "out" / "hf_quant_config.json"
    file.write_text(file.read_text().replace('"FP8"', '"W8A16"'))

    with pytest.raises(CheckpointError, match=rf"{GPT_OSS}.*are read as FP8 or NVFP4, found W8A16"):
        octavo.load_quantized(tmp_path / "out")


def test_vllm_takes_no_int8_experts_with_one_input_scale(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"int8 channel0 of shape \[4, 1536, 64\].*experts' inputs .* per token"
    ):
        written("qwen3_moe", octavo.INT8_DEFAULT_CFG, tmp_path / "out", target="vllm")


def test_experts_that_no_engine_was_seen_to_load_are_named(tmp_path: Path) -> None:
    model = octavo.quantize(plain("gpt_oss"), octavo.FP8_DEFAULT_CFG, [tokens()], quiet=True)

    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target="vllm")

    assert (
        f"{GPT_OSS} in one tensor; whether vllm loads their quantized form was never tried"
        in report.warnings[-1]
    )
