"""Parameters get the names under which `save_pretrained` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import octavo
from helpers.adapters_models import tiny_model, tokens
from octavo.adapters.huggingface.layout import layout_in_checkpoint
from octavo.core.errors import UnsupportedError


def saved_names(model: nn.Module, directory: Path) -> set[str]:
    model.save_pretrained(directory)
    with safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "granitemoe", "mixtral", "qwen3_moe", "gpt_oss"],
)
def test_names_are_those_that_save_pretrained_writes(architecture: str, tmp_path: Path) -> None:
    experts = {"num_local_experts": 2, "num_experts": 2, "moe_intermediate_size": 64}
    model = tiny_model(architecture, tie_word_embeddings=False, **experts)

    assert set(layout_in_checkpoint(model, list(model.state_dict())).places()) == saved_names(model, tmp_path)


def test_a_dense_model_that_is_renamed_on_saving() -> None:
    model = tiny_model("gpt_neox", tie_word_embeddings=False)
    names = layout_in_checkpoint(model, list(model.state_dict())).names

    assert {name: new for name, new in names.items() if name != new} == {"lm_head.weight": "embed_out.weight"}


def test_tied_names_are_all_known() -> None:
    model = tiny_model("qwen3", tie_word_embeddings=True)
    names = layout_in_checkpoint(model, list(model.state_dict())).names

    assert names["lm_head.weight"] == "lm_head.weight"
    assert names["model.embed_tokens.weight"] == "model.embed_tokens.weight"


def test_renamed_layers_are_exported_and_excluded_under_the_new_name(tmp_path: Path) -> None:
    model = tiny_model("gpt_neox", tie_word_embeddings=False)
    octavo.quantize(model, "FP8_DEFAULT_CFG", [tokens()], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    octavo.unquantize(model)

    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        written = {name for name in file.keys() if not name.endswith("_scale")}  # noqa: SIM118
    assert written == saved_names(model, tmp_path)
    metadata = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert metadata["quantization"]["exclude_modules"] == ["embed_out", "gpt_neox.embed_in"]
    assert config["quantization_config"]["ignore"] == ["embed_out", "gpt_neox.embed_in"]


def test_a_dense_model_that_is_stored_fused_is_refused_by_name() -> None:
    model = tiny_model("hrm_text")

    with pytest.raises(UnsupportedError) as caught:
        layout_in_checkpoint(model, list(model.state_dict()))

    for part in (
        "parameters of this HrmTextForCausalLM",
        "layers.0.self_attn.q_proj.weight",
        "cannot be exported or read yet",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "nemotron_h"])
def test_stacked_experts_are_taken_apart_as_save_pretrained_does(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, num_local_experts=3, num_experts=3, n_routed_experts=3)
    tensors = model.state_dict()

    places = layout_in_checkpoint(model, list(tensors)).places()

    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        apart = {name: place for name, place in places.items() if place.index is not None}
        assert len(apart) >= 3 * 2
        for name, place in apart.items():
            assert torch.equal(place.of(tensors[place.name]), file.get_tensor(name))
