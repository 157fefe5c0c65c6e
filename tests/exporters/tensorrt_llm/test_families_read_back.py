"""Every family whose names the reader knows: what was written on four ranks is read as the model that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import octavo
from helpers.exporters_models import with_json
from helpers.tensorrt_llm_models import DECODER, exported, tiny
from helpers.tiny import token_batches
from octavo.core.evaluation.read_back import fill_model
from octavo.exporters.tensorrt_llm import huggingface_names, writer
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint

DECODER_128 = {**DECODER, "vocab_size": 128, "head_dim": 32}
EXPERTS = {**DECODER_128, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
FALCON = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("qwen2", DECODER_128),
    "Qwen3": ("qwen3", DECODER_128),
    "Qwen2-MoE": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Mixtral": ("mixtral", {**DECODER_128, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Gemma": ("gemma", DECODER_128),
    "Gemma 2": ("gemma2", DECODER_128),
    "Cohere": ("cohere", DECODER_128),
    "Phi": ("phi", DECODER_128),
    "Phi 3": ("phi3", DECODER_128),
    "Nemotron": ("nemotron", DECODER_128),
    "StarCoder2": ("starcoder2", DECODER_128),
    "GPT-2": ("gpt2", GPT),
    "StarCoder": ("gpt_bigcode", GPT),
    "StarCoder with keys for each head": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "GPT-J": ("gptj", {**GPT, "rotary_dim": 16}),
    "GPT-NeoX": ("gpt_neox", DECODER_128),
    "Bloom": ("bloom", {"hidden_size": 128, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "MPT": ("mpt", {"d_model": 128, "n_heads": 4, "n_layers": 2, "vocab_size": 128, "max_seq_len": 64}),
    "Falcon 7B": ("falcon", FALCON),
    "Falcon 40B": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon with ALiBi": ("falcon", {**FALCON, "multi_query": False, "alibi": True, "bias": True}),
}


def model_of(name: str) -> nn.Module:
    """Return a tiny model to whose norms 1 can be added without rounding."""
    model_type, config = CASES[name]
    model = tiny(model_type, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_((parameter.float() + 1).bfloat16().float() - 1)
    return model


def read_back(model: nn.Module, folder: Path) -> nn.Module:
    exported(model, folder, inference_tensor_parallel=2, inference_pipeline_parallel=2)
    empty = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    return fill_model(empty, TensorRtLlmCheckpoint(folder)).eval()


@pytest.mark.parametrize("name", CASES)
def test_in_fp8_with_its_cache(tmp_path: Path, name: str) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    model = octavo.quantize(model_of(name), config, token_batches(1), quiet=True)

    served = read_back(model, tmp_path / "out")

    ids = torch.arange(3, 20)[None]
    with octavo.finalized(model, "tensorrt_llm"), torch.no_grad():
        assert torch.equal(served(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", CASES)
def test_plain(tmp_path: Path, name: str) -> None:
    model = model_of(name)

    served = read_back(model, tmp_path / "out")

    expected = model.state_dict()
    assert [n for n, t in served.state_dict().items() if not torch.equal(t, expected[n])] == []


def test_every_architecture_is_a_case() -> None:
    path = Path(huggingface_names.__file__).with_name("huggingface_names.yaml")
    known = yaml.safe_load(path.read_text(encoding="utf-8"))["architectures"]

    elsewhere = {"llama", "mistral"}  # test_export_read_back.py, in every format
    assert set(known.values()) == {model_type for model_type, _ in CASES.values()} | elsewhere


def test_an_export_that_does_not_read_back_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a disk had changed what was written, and its digest with it."""
    check = writer._check_reads_back

    def damage_and_check(folder: Path) -> None:
        tensors = load_file(folder / "rank0.safetensors")
        tensors["transformer.layers.1.mlp.fc.activation_scaling_factor"].fill_(float("nan"))
        save_file(tensors, folder / "rank0.safetensors")
        (folder / "octavo_manifest.rank0.json").unlink()
        check(folder)

    monkeypatch.setattr(writer, "_check_reads_back", damage_and_check)
    model = octavo.quantize(model_of("GPT-2"), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    with pytest.raises(
        octavo.CheckpointError, match=r"layers\.1\.mlp\.fc\.activation_scaling_factor.* rank 0.*nan"
    ):
        exported(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_without_a_map(tmp_path: Path) -> None:
    exported(model_of("Falcon 7B"), tmp_path / "out")
    with_json(tmp_path / "out" / "config.json", lambda config: config.update(parallel_attention=False))

    message = (
        "this variant of FalconForCausalLM are not known: .* parallel_attention False.*num_key_value_heads 1"
    )
    with pytest.raises(octavo.UnsupportedError, match=message):
        TensorRtLlmCheckpoint(tmp_path / "out")
