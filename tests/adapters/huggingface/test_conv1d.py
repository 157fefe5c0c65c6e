"""transformers' Conv1D: GPT-2 quantized, stored and read back like any model of linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import octavo
from octavo.core import formats
from octavo.core.formats import PerChannel, QuantSpec
from octavo.core.modules import quantized_class

C_ATTN = "transformer.h.0.attn.c_attn"
IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
OUT = QuantSpec("int8", PerChannel(0))


def int4() -> dict[str, Any]:
    config = octavo.preset("INT4_BLOCKWISE_WEIGHT_ONLY_CFG")
    (rule,) = (rule for rule in config["quant_cfg"] if rule.get("cfg"))
    rule["cfg"]["block_sizes"][-1] = 32
    return config


PRESETS = ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "INT4", "NVFP4_DEFAULT_CFG"]


def gpt2(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 64, "n_head": 2, "vocab_size": 96, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).to(dtype).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def test_channels_are_outputs() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(6, 8), torch.randint(-8, 8, (2, 3, 8)).float()  # whole numbers, whose sums are exact
    weight, bias = layer.weight.detach().t().contiguous(), layer.bias
    quantized = formats.fake_quantize(weight, [weight.abs().amax(1)], OUT)
    model = octavo.quantize(nn.Sequential(layer), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    output = model(x)
    output.sum().backward()

    assert torch.equal(output, linear(x, quantized, bias))
    assert torch.equal(layer.weight.grad, x.sum((0, 1))[:, None].expand(8, 6))
    assert layer.weight.shape == (8, 6)
    assert type(octavo.unquantize(model)[0]) is Conv1D


def test_all_off_is_the_linear_layer_that_it_stands_for() -> None:
    torch.manual_seed(0)
    layer, x = Conv1D(6, 8), torch.randn(2, 3, 8)
    expected = linear(x, layer.weight.t(), layer.bias)  # a copy of the weight may add up in another order
    model = octavo.quantize(nn.Sequential(layer), "INT8_WEIGHT_ONLY_CFG", quiet=True)
    assert not torch.equal(model(x), expected)
    layer.weight_quantizer.enabled = False

    assert torch.equal(model(x), expected)


def test_the_plan_counts_scales_per_output() -> None:
    plan = octavo.plan(gpt2(), "INT8_DEFAULT_CFG")
    (weight,) = [tensor for tensor in plan.tensors if tensor.name == f"{C_ATTN}.weight"]

    assert quantized_class(Conv1D).__name__ == "QuantConv1D"
    assert (weight.weight, weight.shape, weight.bytes_after) == ((OUT,), (64, 192), 64 * 192 + 4 * 192)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_stored_and_read_back(preset: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = int4() if preset == "INT4" else preset
    model = octavo.quantize(gpt2(dtype), config, [IDS], quiet=True)
    before = logits(model)
    report = octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    with octavo.finalized(model, "unified_hf"):
        expected = logits(model)

    assert torch.equal(logits(octavo.load_quantized(tmp_path / "out")), expected)
    assert torch.equal(logits(model), before), "finalizing is undone"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    rows, columns = stored[f"{C_ATTN}.weight"].shape
    assert (rows, columns) == {"INT4": (96, 64), "NVFP4_DEFAULT_CFG": (192, 32)}.get(preset, (192, 64))
    # The norms' inputs, which the presets quantize as ModelOpt's do, have no place in its checkpoints.
    norms = "the dialect has no place for 3 quantizers: transformer.h.0.ln_1.input_quantizer"
    assert [norms in warning for warning in report.warnings] == ([] if preset == "INT4" else [True])


def test_layers_left_out_stay_as_transformers_stores_them(tmp_path: Path) -> None:
    config = octavo.preset("INT8_DEFAULT_CFG")
    config["quant_cfg"].append({"quantizer_name": "*c_proj*", "enable": False})
    model = octavo.quantize(gpt2(), config, [IDS], quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "transformer.h.0.mlp.c_proj.weight"
    assert torch.equal(stored[name], gpt2().state_dict()[name])
    with octavo.finalized(model, "unified_hf"):
        assert torch.equal(logits(octavo.load_quantized(tmp_path / "out")), logits(model))
