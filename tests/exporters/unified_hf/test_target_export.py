"""What `target=` changes: the numbers that the engine computes with, each change listed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import export, quantized, same, tensors_of, tokens
from helpers.family_cases import family_cases
from octavo.core.errors import ConfigError, ExportError
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect

GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))


def collapsed(tensors: dict[str, Tensor], group: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the values of a group of layers as stored, and as an engine with one scale computes them."""
    codes = [tensors[f"model.layers.0.{name}.weight"].float() for name in group]
    scales = [tensors[f"model.layers.0.{name}.weight_scale"] for name in group]
    values = torch.cat([code * scale for code, scale in zip(codes, scales, strict=True)])
    largest = torch.stack(scales).max()
    return values, (values / largest).to(torch.float8_e4m3fn).float() * largest


@pytest.mark.parametrize("target", ["vllm", "sglang", "trtllm"])
def test_joined_fp8_layers_are_not_rounded_twice(target: str, tmp_path: Path) -> None:
    model = quantized("FP8_DEFAULT_CFG", torch.bfloat16)
    peers = tensors_of(export(model, tmp_path / "peer"))
    ours = tensors_of(export(model, tmp_path / "ours", target=target))

    for group in GROUPS:
        scales = [peers[f"model.layers.0.{name}.weight_scale"] for name in group]
        assert {float(ours[f"model.layers.0.{name}.weight_scale"]) for name in group} == {float(max(scales))}
        assert not torch.equal(*collapsed(peers, group))
        assert torch.equal(*collapsed(ours, group))


def test_a_layer_that_the_model_itself_holds_fused_keeps_its_one_scale(tmp_path: Path) -> None:
    """Engines that find qkv_proj in a checkpoint use its scale for q, k and v: there is nothing to share."""
    case = family_cases()["Phi 3, 4"]
    model = case.model()
    octavo.quantize(model, "FP8_DEFAULT_CFG", [case.batch()], quiet=True)
    peers = tensors_of(export(model, tmp_path / "peer"))
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "ours", quiet=True, target="vllm")
    ours = tensors_of(tmp_path / "ours")

    assert ours["model.layers.0.self_attn.qkv_proj.weight_scale"].shape == ()
    assert report.differences == ()
    assert all(same(peers[name], ours[name]) for name in peers | ours)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("FP8_DEFAULT_CFG", True), ("NVFP4_DEFAULT_CFG", False), ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", True)],
)
def test_the_report_lists_every_difference_and_no_other(preset: str, changes: bool, tmp_path: Path) -> None:
    model = quantized(preset, num_key_value_heads=4)
    peers = tensors_of(export(model, tmp_path / "peer"))
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "ours", quiet=True, target="vllm")
    ours = tensors_of(tmp_path / "ours")

    assert peers.keys() == ours.keys()
    differing = {name.rpartition(".")[0] for name in peers if not same(peers[name], ours[name])}
    listed = {text.split(": ")[0].removesuffix(".weight_quantizer") for text in report.differences}
    assert differing == {name.removesuffix(".weight_scale") for name in listed}
    assert bool(differing) is changes
    assert report.exporter == "unified_hf"
    assert tensors_of(export(model, tmp_path / "again")).keys() == peers.keys()


def test_a_difference_says_both_numbers(tmp_path: Path) -> None:
    model = quantized("FP8_DEFAULT_CFG")
    amax = {
        letter: float(model.get_submodule(f"model.layers.0.self_attn.{letter}_proj.weight_quantizer").amax)  # type: ignore[arg-type]
        for letter in "qkv"
    }
    smallest = min(amax, key=lambda letter: amax[letter])

    found = octavo.finalize(model, "unified_hf", target="vllm")

    name = f"model.layers.0.self_attn.{smallest}_proj.weight_quantizer"
    assert f"{name}: amax {max(amax.values()):.6g} instead of {amax[smallest]:.6g}" in found
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target="vllm")
    assert report.differences == found


def test_single_square_blocks_have_four_dims(tmp_path: Path) -> None:
    model = quantized("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", num_key_value_heads=4)
    name = "model.layers.0.self_attn.o_proj.weight_scale"

    assert tensors_of(export(model, tmp_path / "peer"))[name].shape == ()
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "ours", quiet=True, target="vllm")
    assert tensors_of(tmp_path / "ours")[name].shape == (1, 1, 1, 1)
    assert f"{name}: shape [1, 1, 1, 1] instead of []" in report.differences


def test_what_is_read_back_is_the_finalized_model(tmp_path: Path) -> None:
    model = quantized("FP8_DEFAULT_CFG")
    export(model, tmp_path / "out", target="vllm")

    with octavo.finalized(model, "unified_hf", target="vllm"), torch.no_grad():
        expected = model(tokens()).logits
    with torch.no_grad():
        assert same(octavo.load_quantized(tmp_path / "out")(tokens()).logits, expected)
        assert not same(model(tokens()).logits, expected)


def test_refusals_name_evidence_and_layers(tmp_path: Path) -> None:
    model = quantized("MXFP6_DEFAULT_CFG")
    message = r"vllm and weights e3m2 .*: refused \(the name is Octavo's own\); layers model\.layers\.0"
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out", target="vllm")
    with pytest.raises(ConfigError, match=r"unknown target 'vlm'; known: vllm, .* Did you mean 'vllm'"):
        export(model, tmp_path / "out", target="vlm")
    with pytest.raises(ConfigError, match=r"unknown target 'vlm'"):
        octavo.finalize(model, "unified_hf", target="vlm")
    with pytest.raises(
        ConfigError, match=r"target='vllm' needs the name of an exporter, found the dialect unified_hf"
    ):
        octavo.finalize(model, UnifiedHfDialect(), target="vllm")
    assert not (tmp_path / "out").exists()


def test_a_model_finalized_for_one_engine_is_not_written_for_another(tmp_path: Path) -> None:
    model = quantized("FP8_DEFAULT_CFG")
    octavo.finalize(model, "unified_hf", target="vllm")

    for target in (None, "sglang"):
        with pytest.raises(ExportError, match=r"finalized for unified_hf for vllm; call octavo\.unfinalize"):
            export(model, tmp_path / "out", target=target)


def test_formats_that_were_never_tried_are_warned_of(tmp_path: Path) -> None:
    model = quantized("MXFP8_DEFAULT_CFG")
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True, target="trtllm")

    assert any(
        "trtllm and weights e4m3 block{-1:32}" in text and "unknown" in text for text in report.warnings
    )
