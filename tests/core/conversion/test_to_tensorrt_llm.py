"""Checkpoints of Hugging Face's names, divided over TensorRT-LLM's ranks: the files that the exporter writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from helpers.conversions import values_of
from helpers.exporters_models import json_of, with_tensors
from helpers.reference import folder
from helpers.tensorrt_llm_models import DECODER, quantized_llama, tiny
from helpers.tensorrt_llm_reference import reference_folder
from helpers.tiny import token_batches
from helpers.trtllm_checkpoints import same

LAYOUTS = {"tp1pp1": (1, 1), "tp2pp2": (2, 2)}
GPT = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64, "bos_token_id": 1}
MODELS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "gpt2": (GPT, "INT8_WEIGHT_ONLY_CFG"),
    "phi3": (DECODER, "NVFP4_DEFAULT_CFG"),
    "gemma": ({**DECODER, "head_dim": 32}, "INT8_WEIGHT_ONLY_CFG"),
    "bloom": (DECODER, "INT8_WEIGHT_ONLY_CFG"),
    "qwen2": (DECODER, "NVFP4_DEFAULT_CFG"),
}


def convert(source: Path, out: Path, tp: int = 1, pp: int = 1, **options: Any) -> octavo.ConversionReport:
    return octavo.convert_checkpoint(source, out, "tensorrt_llm", tp=tp, pp=pp, quiet=True, **options)


def differing(found: Path, expected: Path) -> set[str]:
    """Return the tensors that two checkpoints do not both have on every rank, bit for bit; blocks without number."""
    names = set()
    for file in sorted(expected.glob("rank*.safetensors")):
        ours, theirs = load_file(found / file.name), load_file(file)
        either = ours.keys() | theirs.keys()
        names |= {n for n in either if n not in ours or n not in theirs or not same(ours[n], theirs[n])}
    return {".".join(part for part in name.split(".") if not part.isdigit()) for name in names}


def config_of(directory: Path) -> dict[str, Any]:
    """Return config.json without who wrote it."""
    config = json_of(directory / "config.json")
    config.pop("producer")
    return config


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("preset", ["INT8_WEIGHT_ONLY_CFG", "INT8_SMOOTHQUANT_CFG", "NVFP4_DEFAULT_CFG"])
def test_the_peers_files_become_its_own_ones(shared: Path, tmp_path: Path, preset: str, layout: str) -> None:
    """ModelOpt wrote both from one model: names, dtypes, shapes and bytes are equal, and config.json is."""
    reference = reference_folder(shared, preset, layout)

    report = convert(folder(shared, "dense") / preset, tmp_path / "out", *LAYOUTS[layout])

    assert (report.source_dialect, report.dialect, report.changes) == ("unified_hf", "tensorrt_llm", ())
    assert differing(tmp_path / "out", reference) == set()
    assert config_of(tmp_path / "out") == config_of(reference)
    ranks = [load_file(file) for file in sorted((tmp_path / "out").glob("rank*.safetensors"))]
    tp, pp = LAYOUTS[layout]
    assert (len(ranks), report.num_tensors) == (tp * pp, sum(map(len, ranks)))
    assert report.num_bytes == sum(tensor.nbytes for rank in ranks for tensor in rank.values())


@pytest.mark.parametrize("preset", ["INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG"])
def test_where_awq_differs(shared: Path, tmp_path: Path, preset: str) -> None:
    """The unified files have factors folded into norms, and one for both of the MLP's first layers: both stay so."""
    report = convert(folder(shared, "dense") / preset, tmp_path / "out", 2, 2)

    assert report.changes == ()
    block, first = "transformer.layers", ("mlp.fc", "mlp.gate")
    folded = {f"{block}.{layer}.prequant_scaling_factor" for layer in ("attention.qkv", *first)}
    norms = {f"{block}.{norm}.weight" for norm in ("input_layernorm", "post_layernorm")}
    own = {f"{block}.{layer}.{part}" for layer in first for part in ("weight", "weights_scaling_factor")}
    if preset == "W4A8_AWQ_BETA_CFG":
        own |= {f"{block}.{layer}.weights_scaling_factor_2" for layer in first}
        own |= {f"{block}.mlp.gate.activation_scaling_factor"}
    assert differing(tmp_path / "out", reference_folder(shared, preset, "tp2pp2")) == folded | norms | own


def test_where_fp8_differs(shared: Path, tmp_path: Path) -> None:
    """Scales are the peer's; codes were rounded once more, and are those next to its codes at most."""
    source = folder(shared, "dense") / "FP8_DEFAULT_CFG+FP8_KV_CFG"
    reference = reference_folder(shared, "FP8_DEFAULT_CFG+FP8_KV_CFG", "tp2pp2")
    message = r"tensorrt_llm cannot hold 10 tensors exactly, in which 11\.74% of all codes change: .*v_proj\.weight: "
    with pytest.raises(octavo.ExportError, match=message):
        convert(source, tmp_path / "out", 2, 2)

    report = convert(source, tmp_path / "out", 2, 2, lossy=True)

    changed = {change.name.rpartition("self_attn.")[2] for change in report.changes}
    caches = {"k_bmm_quantizer", "v_bmm_quantizer"}  # whose scales are at least 1 there
    attention = {f"{letter}_proj.weight" for letter in "qkv"}
    assert {name for name in changed if "mlp" not in name} == attention | caches
    names = differing(tmp_path / "out", reference)
    assert {name.rpartition(".")[2] for name in names} == {"weight"}
    for file in reference.glob("rank*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / file.name), load_file(file)
        for name, expected in theirs.items():
            if expected.dtype == torch.float8_e4m3fn:
                assert (places(ours[name]) - places(expected)).abs().max() <= 1, name


def places(codes: Tensor) -> Tensor:
    """Return each code's place among all codes in order."""
    bits = codes.view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


@pytest.mark.parametrize("model_type", MODELS)
def test_converted_is_what_is_exported(model_type: str, tmp_path: Path) -> None:
    """Joined and fused layers, transposed ones, shared heads, norms that add one: families of each kind."""
    config, preset = MODELS[model_type]
    model = octavo.quantize(tiny(model_type, **config), preset, token_batches(1), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)
    octavo.export_tensorrt_llm_checkpoint(
        model, None, None, tmp_path / "direct", inference_tensor_parallel=2, quiet=True
    )

    report = convert(tmp_path / "unified", tmp_path / "out", 2)

    assert report.changes == ()
    assert differing(tmp_path / "out", tmp_path / "direct") == set()
    assert json_of(tmp_path / "out" / "config.json") == json_of(tmp_path / "direct" / "config.json")


def test_a_head_that_is_the_token_embedding(tmp_path: Path) -> None:
    model = quantized_llama("NVFP4_DEFAULT_CFG", tie_word_embeddings=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)
    octavo.export_tensorrt_llm_checkpoint(model, None, None, tmp_path / "direct", quiet=True)
    assert "lm_head.weight" not in load_file(tmp_path / "unified" / "model.safetensors")

    assert convert(tmp_path / "unified", tmp_path / "out").changes == ()

    assert differing(tmp_path / "out", tmp_path / "direct") == set()
    assert "lm_head.weight" in load_file(tmp_path / "out" / "rank0.safetensors")


def test_experts_have_one_scale_of_their_input(tmp_path: Path) -> None:
    config = {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = octavo.quantize(tiny("mixtral", **config), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    octavo.disable_quantizer(model, "*self_attn*")  # whose scales differ
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)
    experts = "model.layers.1.block_sparse_moe.experts"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{experts}.2.w3.input_scale"] *= 2

    before = convert(tmp_path / "unified", tmp_path / "before", 2, ep=2)
    with_tensors(tmp_path / "unified", change)
    after = convert(tmp_path / "unified", tmp_path / "after", 2, ep=2, lossy=True)

    assert before.changes == ()
    expected = {f"{experts}.{e}.{w}.input_quantizer" for e in range(4) for w in ("w1", "w3")}
    assert {change.name for change in after.changes} == expected - {f"{experts}.2.w3.input_quantizer"}
    assert {(change.codes, change.scales) for change in after.changes} == {(0.0, 1.0)}
    name = "transformer.layers.1.mlp.fc.activation_scaling_factor"
    assert differing(tmp_path / "after", tmp_path / "before") == {name.replace(".1.", ".")}
    for rank in ("rank0.safetensors", "rank1.safetensors"):
        old, new = (load_file(tmp_path / when / rank)[name] for when in ("before", "after"))
        assert torch.equal(new, 2 * old)


def test_compressed_tensors(tmp_path: Path) -> None:
    """Whose scales are bf16, which fp32 holds: every value stays."""
    model = quantized_llama("INT8_WEIGHT_ONLY_CFG")
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "ct", target="vllm", quiet=True)

    report = convert(tmp_path / "ct", tmp_path / "out", 2, 2)

    assert (report.source_dialect, report.changes) == ("compressed_tensors", ())
    before, after = values_of(tmp_path / "ct"), values_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_cache_without_scales_gets_those_that_engines_take(tmp_path: Path) -> None:
    model = quantized_llama(octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", "FP8_KV_CFG"))
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "unified", quiet=True)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("k_scale", "v_scale"))]:
            del tensors[name]

    report = convert(with_tensors(tmp_path / "unified", change), tmp_path / "out")

    assert report.changes == ()
    tensors = load_file(tmp_path / "out" / "rank0.safetensors")
    scales = [tensor for name, tensor in tensors.items() if name.endswith("cache_scaling_factor")]
    assert len(scales) == 6
    assert all(torch.equal(scale, torch.ones(1)) for scale in scales)
    assert json_of(tmp_path / "out" / "config.json")["quantization"]["kv_cache_quant_algo"] == "FP8"
