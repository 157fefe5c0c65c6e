"""Small models as TensorRT-LLM checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import octavo
from helpers.exporters_models import json_of
from helpers.tiny import SIZES, tiny_llama, token_batches

DECODER = {**SIZES, "bos_token_id": 1, "eos_token_id": 2}


def tiny(model_type: str, dtype: torch.dtype = torch.bfloat16, **config: Any) -> nn.Module:
    """Return a random model of a type, its biases and norms random too."""
    torch.manual_seed(0)
    made = AutoConfig.for_model(model_type, **config)
    model: nn.Module = AutoModelForCausalLM.from_config(made, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def quantized_llama(config: Any, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> nn.Module:
    return octavo.quantize(tiny_llama(dtype, **changes), config, token_batches(1), quiet=True)


def exported(model: nn.Module, folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Export; return the tensors of the first rank, and config.json."""
    octavo.export_tensorrt_llm_checkpoint(model, export_dir=folder, quiet=True, **options)
    return load_file(folder / "rank0.safetensors"), json_of(folder / "config.json")
