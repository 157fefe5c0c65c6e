"""What is written over four ranks is read as the model finalized for the dialect, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.tensorrt_llm_models import exported, quantized_llama
from octavo.core.modules import quantized_layers

CONFIGS = {
    "FP8": octavo.FP8_DEFAULT_CFG,
    "INT8, smoothed": octavo.INT8_SMOOTHQUANT_CFG,
    "INT4": octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32),
    "NVFP4": octavo.NVFP4_DEFAULT_CFG,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reader_finds_the_finalized_numbers(tmp_path: Path, name: str) -> None:
    model = quantized_llama(CONFIGS[name])
    exported(model, tmp_path / "out", inference_tensor_parallel=2, inference_pipeline_parallel=2)

    checkpoint = octavo.plugins().exporter("tensorrt_llm").open(tmp_path / "out")

    found = dict(checkpoint.tensors())
    activations = checkpoint.activations()
    with octavo.finalized(model, "tensorrt_llm"):
        for name, layer in quantized_layers(model):
            packed = found.pop(f"{name}.weight")
            if name == "lm_head":
                assert isinstance(packed, Tensor)
                continue
            assert torch.equal(packed.dequantize(), layer.weight_quantizer(layer.weight.detach()))
            stage = layer.input_quantizer
            if stage.enabled and stage.spec.state:
                state = activations[f"{name}.input_quantizer"].state
                assert {k: v.item() for k, v in state.items()} == {
                    k: v.item() for k, v in stage.named_state().items()
                }
    plain = model.state_dict()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, plain[name])] == []
