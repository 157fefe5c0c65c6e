"""Checkpoints whose metadata, scales or codes do not fit together are refused, and what is wrong is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.trtllm_checkpoints import config_of, tensors_of, write_one_rank
from octavo.core.errors import CheckpointError, UnsupportedError
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint

FC = "transformer.layers.0.mlp.fc"
Tensors = dict[str, Tensor]


def read_all(folder: Path) -> None:
    checkpoint = TensorRtLlmCheckpoint(folder)
    checkpoint.activations()
    list(checkpoint.tensors())


def damaged(
    folder: Path, algo: str, edit: Callable[[Tensors], object] = lambda tensors: None, **changes: Any
) -> Path:
    config = config_of("llama", algo)
    tensors = tensors_of(config)
    edit(tensors)
    return write_one_rank(folder, {**config, **changes}, tensors)


def put(suffix: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{FC}.{suffix}": tensor})


def drop(suffix: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{FC}.{suffix}")


@pytest.mark.parametrize(
    ("algo", "edit", "message"),
    [
        (
            "FP8",
            drop("weights_scaling_factor"),
            "rank 0 holds codes (torch.float8_e4m3fn), and its scales are missing",
        ),
        ("FP8", drop("activation_scaling_factor"), f"'{FC}.activation_scaling_factor' is missing"),
        ("NVFP4", drop("weights_scaling_factor_2"), "weights_scaling_factor_2 is missing, which NVFP4 needs"),
        (
            "W4A8_AWQ",
            drop("weights_scaling_factor_2"),
            "weights_scaling_factor_2 is missing, which W4A8_AWQ needs",
        ),
        (
            "FP8",
            put("weight", torch.zeros(64, 32)),
            "weight has dtype torch.float32, expected torch.float8_e4m3fn",
        ),
        ("FP8", put("weights_scaling_factor", torch.ones(3)), "has shape (), found (3,)"),
        ("W8A16", put("weights_scaling_factor", torch.ones(63)), "has shape (64,), found (63,)"),
        (
            "W8A16",
            put("weight", torch.zeros(4, 64, 32).to(torch.int8)),
            "must be a matrix, found shape [4, 64, 32]",
        ),
        ("W4A16_AWQ", put("weight", torch.zeros(16, 32).to(torch.int8)), "has shape (32, 2), found (64, 2)"),
        (
            "W4A16_AWQ",
            put("weights_scaling_factor", torch.full((64, 2), torch.nan)),
            "weights_scaling_factor holds NaN or infinite scales",
        ),
        (
            "FP8",
            put("weights_scaling_factor", -torch.ones(1)),
            "weights_scaling_factor holds negative scales",
        ),
        (
            "NVFP4",
            put("weights_scaling_factor_2", torch.zeros(())),
            "weights_scaling_factor_2 must be one positive",
        ),
        ("FP8", put("activation_scaling_factor", torch.zeros(1)), "of rank 0 must be one positive number"),
        (
            "W4A16_AWQ",
            put("prequant_scaling_factor", torch.zeros(32)),
            "factors that are no positive numbers",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, algo: str, edit: Any, message: str) -> None:
    folder = damaged(tmp_path, algo, edit)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": {"quant_algo": "FP9"}}, "unknown quant_algo 'FP9'; known: FP8, "),
        ({"quantization": {}}, "unknown quant_algo None; known: FP8, "),
        ({"quantization": [1]}, "quantization of config.json must be an object, found [1]"),
        (
            {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "INT4"}},
            "names the cache's format 'INT4'; known: FP8, INT8, NVFP4",
        ),
        ({"dtype": "int8"}, "has dtype 'int8', which is no float dtype of torch"),
        ({"architecture": None}, "config.json must name an architecture, found None"),
        ({"intermediate_size": None}, "must say intermediate_size, a whole number, at least 1; found None"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = damaged(tmp_path, "FP8", **changes)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(folder)


def test_an_architecture_whose_names_are_not_known(tmp_path: Path) -> None:
    folder = damaged(tmp_path, "FP8", architecture="LlamasForCausalLM")
    message = "names of LlamasForCausalLM are not known; .* Did you mean 'LlamaForCausalLM'"
    with pytest.raises(UnsupportedError, match=message):
        read_all(folder)


def test_a_layer_whose_place_is_not_known(tmp_path: Path) -> None:
    name = "transformer.layers.0.recurrent.linear_x"
    folder = damaged(tmp_path, "FP8", lambda tensors: tensors.update({f"{name}.weight": torch.zeros(1)}))
    with pytest.raises(
        UnsupportedError, match=f"layer {name!r} has no place that is known in models of type 'llama'"
    ):
        read_all(folder)


def mixed(folder: Path, said: Any) -> Path:
    quantization = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}
    damaged(folder, "FP8", quantization=quantization)
    (folder / "quant_cfg.json").write_text(json.dumps({**quantization, "quantized_layers": said}))
    return folder


def test_formats_of_layers_in_a_file_of_their_own(tmp_path: Path) -> None:
    layers = {name.rpartition(".")[0] for name in tensors_of(config_of("llama", "FP8")) if "scaling" in name}
    whole = {layer: {"quant_algo": "FP8"} for layer in layers}
    read_all(mixed(tmp_path / "whole", whole))

    with pytest.raises(CheckpointError, match=f"must describe {FC}, which has scales; found None"):
        read_all(mixed(tmp_path / "part", {layer: said for layer, said in whole.items() if layer != FC}))
    with pytest.raises(CheckpointError, match=f"{FC}: unknown quant_algo 'FP6'"):
        read_all(mixed(tmp_path / "other", {**whole, FC: {"quant_algo": "FP6"}}))
    with pytest.raises(CheckpointError, match=r"must hold 'quantized_layers' by module, found \[\]"):
        read_all(mixed(tmp_path / "none", []))


def test_a_scale_of_the_cache_that_is_missing(tmp_path: Path) -> None:
    attention = "transformer.layers.0.attention"
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    joint = {f"{attention}.kv_cache_scaling_factor": torch.tensor([2.0])}
    folder = damaged(
        tmp_path / "joint", "FP8", lambda tensors: tensors.update(joint), quantization=quantization
    )
    states = TensorRtLlmCheckpoint(folder).activations()
    for letter in "kv":
        assert states[f"model.layers.0.self_attn.{letter}_bmm_quantizer"].state["amax"] == 896

    half = {f"{attention}.k_cache_scaling_factor": torch.tensor([2.0])}
    folder = damaged(
        tmp_path / "half", "FP8", lambda tensors: tensors.update(half), quantization=quantization
    )
    with pytest.raises(CheckpointError, match=f"tensor '{attention}.kv_cache_scaling_factor' is missing"):
        read_all(folder)
