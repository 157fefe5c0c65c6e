"""A program of its own: quantizes a model with the compressed-tensors library alone, as llm-compressor does.

    python -I compressed_tensors_writer.py MODEL GROUPS OUT

GROUPS are config_groups as JSON. Scales and zero points are the library's own, of each weight's range. OUT becomes the
checkpoint that the library writes, and OUT/expected.safetensors what the library dequantizes its tensors to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def set_scales(layer: torch.nn.Module) -> None:
    """Set scales and zero points of a layer's weight from its range, as a min-max observer would."""
    arguments, weight = layer.quantization_scheme.weights, layer.weight.detach()
    low, high = ranges(weight, arguments)
    divisor = None
    if arguments.strategy == "tensor_group":
        divisor = generate_gparam(weight.min(), weight.max())
        layer.weight_global_scale.data.copy_(divisor)
    scale, zero_point = calculate_qparams(low, high, arguments, global_scale=divisor)
    layer.weight_scale.data.copy_(scale.reshape(layer.weight_scale.shape))
    if not arguments.symmetric:
        layer.weight_zero_point.data.copy_(zero_point.reshape(layer.weight_zero_point.shape))
    if getattr(layer, "input_global_scale", None) is not None:
        layer.input_global_scale.data.fill_(300.0)
    if getattr(layer, "input_scale", None) is not None:
        layer.input_scale.data.fill_(0.05)


def ranges(weight: torch.Tensor, arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minima and maxima of what shares a scale."""
    rows, columns = weight.shape
    if arguments.strategy == "block":
        blocks = weight.reshape(rows // 128, 128, columns // 128, 128)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    length = {"channel": columns, "tensor": rows * columns}.get(arguments.strategy, arguments.group_size)
    blocks = weight.reshape(-1, length)
    return blocks.amin(-1), blocks.amax(-1)


model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
groups, out = json.loads(sys.argv[2]), Path(sys.argv[3])
apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
for module in model.modules():
    if getattr(module, "quantization_scheme", None) is not None:
        set_scales(module)
compressor = ModelCompressor.from_pretrained_model(model)
compressor.compress_model(model)
model.save_pretrained(out)
compressor.update_config(out)
compressor.decompress_model(model)
values = {
    f"{name}.weight": module.weight.detach().clone().contiguous()
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
save_file(values, out / "expected.safetensors")
