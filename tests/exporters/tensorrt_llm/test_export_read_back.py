"""What the exporter writes on any ranks, the reader hands back as the finalized model's weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo
from helpers.exporters_models import quantized
from octavo.core.modules import quantized_layers
from octavo.exporters.tensorrt_llm.reader import TensorRtLlmCheckpoint

PRESETS = (
    "FP8_DEFAULT_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "INT8_DEFAULT_CFG",
    "INT8_WEIGHT_ONLY_CFG",
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT4_AWQ_CFG",
    "W4A8_AWQ_BETA_CFG",
    "NVFP4_DEFAULT_CFG",
    "NVFP4_MLP_ONLY_CFG",
    "W4A16_NVFP4_CFG",
    "W4A8_NVFP4_FP8_CFG",
)


def exported(model: Any, directory: Path, tp: int, pp: int) -> TensorRtLlmCheckpoint:
    octavo.export_tensorrt_llm_checkpoint(
        model,
        export_dir=directory,
        dtype=torch.bfloat16,
        inference_tensor_parallel=tp,
        inference_pipeline_parallel=pp,
        quiet=True,
    )
    return TensorRtLlmCheckpoint(directory)


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_those_of_the_finalized_model(preset: str, tmp_path: Path) -> None:
    model = quantized(preset, torch.bfloat16)
    tp = 1 if "INT4" in preset or "W4A8_AWQ" in preset else 2  # blocks of 128 inputs
    checkpoint = exported(model, tmp_path / "out", tp, 2)
    with octavo.finalized(model, "tensorrt_llm"), torch.no_grad():
        fake = {
            f"{name}.weight": layer.weight_quantizer(layer.weight)
            for name, layer in quantized_layers(model)
            if isinstance(getattr(layer, "weight", None), Tensor)
        }

    found = {name: value for name, value in checkpoint.tensors() if not isinstance(value, Tensor)}

    assert found.keys() == fake.keys()
    for name, value in found.items():
        assert torch.equal(value.dequantize(torch.bfloat16), fake[name]), name


@pytest.mark.parametrize(
    "preset", ["FP8_DEFAULT_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "NVFP4_DEFAULT_CFG"]
)
def test_the_model_read_back_computes_what_the_finalized_one_does(preset: str, tmp_path: Path) -> None:
    model = quantized(preset, torch.bfloat16)
    exported(model, tmp_path / "out", 1, 2)
    model.config.save_pretrained(tmp_path / "config")
    served = octavo.load_quantized(tmp_path / "out", config=tmp_path / "config")
    ids = torch.arange(3, 20)[None]
    with octavo.finalized(model, "tensorrt_llm"), torch.no_grad():
        assert torch.equal(served(ids).logits, model(ids).logits)


def test_the_config_of_the_model_is_asked_for(tmp_path: Path) -> None:
    exported(quantized("FP8_DEFAULT_CFG", torch.bfloat16), tmp_path / "out", 1, 1)

    with pytest.raises(octavo.CheckpointError, match=r"out is a tensorrt_llm checkpoint, .* as config=…"):
        octavo.load_quantized(tmp_path / "out")
