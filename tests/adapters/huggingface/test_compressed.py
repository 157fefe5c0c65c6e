"""Packed weights in transformers models: generating, `save_pretrained`, and `from_pretrained` in a new process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import octavo
from helpers.adapters_models import tiny_model
from helpers.compressed_models import FORMATS, quantized_llama
from helpers.exporters_models import digests
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import UnsupportedError
from octavo.core.modules import packed_layers

IN_NEW_PROCESS = """
import sys
import octavo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

octavo.enable_huggingface()
tokens, *folders = sys.argv[1:]
for folder in folders:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    made = model.generate(load_file(tokens)["tokens"], max_new_tokens=6, do_sample=False)
    save_file({"made": made}, folder + ".made")
    octavo.export_hf_checkpoint(model, export_dir=folder + ".exported", quiet=True)
"""
STORED = (
    "int8", "int4", "fp8", "fp8 channel", "fp8 square", "nvfp4", "mxfp4", "mxfp6", "mxfp8", "mxint8", "int4 then fp8",
)  # fmt: skip


def generated(model: Any) -> torch.Tensor:
    made: torch.Tensor = model.generate(token_batches()[0], max_new_tokens=6, do_sample=False)
    return made


def test_every_format_generates_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    """Compress, generate, save_pretrained, from_pretrained and generate in a new process, export: the same."""
    made = {}
    for name in STORED:
        model: Any = quantized_llama(FORMATS[name])
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / f"{name}.expected", quiet=True)
        octavo.compress(model, quiet=True)
        made[name] = generated(model)
        model.save_pretrained(tmp_path / name)
    save_file({"tokens": token_batches()[0]}, tmp_path / "tokens")
    folders = [str(tmp_path / name) for name in STORED]

    command = [sys.executable, "-c", IN_NEW_PROCESS, str(tmp_path / "tokens"), *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for name in STORED:
        assert torch.equal(load_file(tmp_path / f"{name}.made")["made"], made[name]), name
        assert digests(tmp_path / f"{name}.exported") == digests(tmp_path / f"{name}.expected"), name


@pytest.mark.parametrize("writer", ["save_pretrained", "octavo.save"])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt2", "tied llama"])
def test_names_that_change_in_files_and_tied_tensors(model_type: str, writer: str, tmp_path: Path) -> None:
    model = packed_model(model_type)
    octavo.enable_huggingface()
    if writer == "octavo.save":
        octavo.save(model, tmp_path / "saved")
    else:
        model.save_pretrained(tmp_path / "saved")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")

    assert [name for name, _ in packed_layers(loaded)] == [name for name, _ in packed_layers(model)]
    with torch.no_grad():
        ids = token_batches()[0]
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())


def packed_model(model_type: str) -> Any:
    if model_type == "tied llama":
        model: Any = tiny_llama(torch.bfloat16, tie_word_embeddings=True)
    elif model_type == "mixtral":
        model = tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2)
        model.set_experts_implementation("eager")
    else:
        model = tiny_model(model_type)
    octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(), quiet=True)
    return octavo.compress(model, quiet=True)


def test_dense_weights_take_no_memory_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    octavo.enable_huggingface()
    model: Any = octavo.compress(quantized_llama("INT4_BLOCKWISE_WEIGHT_ONLY_CFG"), quiet=True)
    model.save_pretrained(tmp_path / "saved")
    sizes: list[int] = []
    original = nn.Module.register_parameter

    def watched(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None and not parameter.is_meta:
            sizes.append(parameter.nbytes)
        original(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", watched)
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")

    largest_dense = 2 * 256 * 128  # of the MLP's projections, bf16
    assert sizes
    assert max(sizes) < largest_dense


def test_a_decompressed_model_leaves_nothing_in_the_config(tmp_path: Path) -> None:
    model: Any = octavo.compress(quantized_llama("FP8_DEFAULT_CFG"), quiet=True)
    model.save_pretrained(tmp_path / "saved")

    octavo.decompress(model)

    assert getattr(model, "hf_quantizer", None) is None
    assert not hasattr(model.config, "quantization_config")


def test_dense_experts_that_files_take_apart_are_named(tmp_path: Path) -> None:
    model: Any = tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2)
    model.set_experts_implementation("eager")
    octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(), quiet=True)
    octavo.compress(model, "*self_attn*", quiet=True)
    octavo.enable_huggingface()
    model.save_pretrained(tmp_path / "saved")

    with pytest.raises(
        UnsupportedError,
        match=r"takes model.layers.0.mlp.experts.\w+.* apart; write such a model with octavo",
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
