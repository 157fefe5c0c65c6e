"""The simulated model's logits equal ModelOpt's, or an oracle's where ModelOpt cannot run on a CPU."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.reference import (
    CASES,
    base_model,
    calibration_ids,
    folder,
    logits,
    median_token_distance,
    quantized_model,
)
from oracles import number_formats as oracle

PLAIN = {"scale": "float32", "global_max": None, "arithmetic": "multiply", "ties": "even"}
FP8 = {**PLAIN, "element": "e4m3", "granularity": {"kind": "tensor"}, "dynamic": False}
DYNAMIC_FP8 = {**FP8, "dynamic": True}
BLOCK_16 = {"kind": "block", "sizes": {"-1": 16}}
BLOCK_32 = {"kind": "block", "sizes": {"-1": 32}}
NVFP4 = {"element": "e2m1", "scale": "e4m3", "global_max": 2688.0, "dynamic": True}
NVFP4_16 = {**PLAIN, **NVFP4, "granularity": BLOCK_16}
NVFP4_32 = {**PLAIN, **NVFP4, "granularity": BLOCK_32}
MXFP4 = {**PLAIN, "element": "e2m1", "scale": "e8m0", "granularity": BLOCK_32, "dynamic": True}
MXFP8 = {**MXFP4, "element": "e4m3"}
# Formats that ModelOpt simulates on a GPU only: (weights, inputs), as its documentation defines them.
ORACLE_FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "MXFP4_DEFAULT_CFG": (MXFP4, MXFP4),
    "MXFP8_DEFAULT_CFG": (MXFP8, MXFP8),
    "NVFP4_DEFAULT_CFG": (NVFP4_16, NVFP4_16),
    "W4A16_NVFP4_CFG": (NVFP4_16, None),
    "W4A8_MXFP4_FP8_CFG": (MXFP4, DYNAMIC_FP8),
    "W4A8_NVFP4_FP8_CFG": (NVFP4_32, FP8),
}


@pytest.mark.parametrize(("base", "preset"), CASES)
def test_logits_stay_within_three_times_the_attention_kernels_difference(
    shared: Path, base: str, preset: str
) -> None:
    saved = load_file(folder(shared, base) / preset / "logits.safetensors")
    name, _, kv = preset.partition("+")
    ids = calibration_ids(shared, base)
    if "fake_quant" in saved:
        expected = saved["fake_quant"]
    else:
        expected = logits(_oracle_model(shared, base, preset, *ORACLE_FORMATS[name], kv == "FP8_KV_CFG"), ids)

    found = logits(quantized_model(shared, base, preset), ids)

    assert median_token_distance(found, expected) <= 3 * _attention_difference(shared, base)
    assert median_token_distance(found, saved["fp"]) > 0, "the model is quantized"


@lru_cache(maxsize=2)
def _attention_difference(shared: Path, base: str) -> float:
    ids = calibration_ids(shared, base)
    eager, sdpa = (logits(base_model(shared, base, kind), ids) for kind in ("eager", "sdpa"))
    return median_token_distance(eager, sdpa)


def _oracle_model(
    shared: Path, base: str, preset: str, weights: dict[str, Any], inputs: dict[str, Any] | None, kv: bool
) -> nn.Module:
    """The base model with its linears (and keys and values) fake-quantized by the oracle, from ModelOpt's maxima."""
    model = base_model(shared, base)
    state_file = folder(shared, base) / preset / "quantizer_state.safetensors"
    state = {k: v.float() for k, v in load_file(state_file).items()} if state_file.exists() else {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.weight.data = _fake(layer.weight.data, weights, state.get(f"{name}.weight_quantizer._amax"))
            if inputs is not None:
                amax = state.get(f"{name}.input_quantizer._amax")
                layer.register_forward_pre_hook(lambda _, args, amax=amax: (_fake(args[0], inputs, amax),))
        elif name.endswith(".experts"):
            _quantize_experts(name, layer, state, weights, inputs)
    if kv:
        _quantize_kv(model, state)
    return model


def _quantize_experts(
    name: str, layer: Any, state: dict[str, Tensor], weights: dict[str, Any], inputs: dict[str, Any] | None
) -> None:
    """Quantize stacked experts, their weights in place, and run them one by one with quantized inputs."""

    def quantized(x: Tensor, parameter: str) -> Tensor:
        return (
            x if inputs is None else _fake(x, inputs, state.get(f"{name}.{parameter}_input_quantizer._amax"))
        )

    def forward(x: Tensor, chosen: Tensor, factors: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for expert in chosen.unique():
            token, position = torch.where(chosen == expert)
            gate, up = (quantized(x[token], "gate_up_proj") @ layer.gate_up_proj[expert].T).chunk(2, -1)
            output = quantized(layer.act_fn(gate) * up, "down_proj") @ layer.down_proj[expert].T
            result.index_add_(0, token, output * factors[token, position, None])
        return result

    for parameter in ("gate_up_proj", "down_proj"):
        for expert, weight in enumerate(getattr(layer, parameter).data):
            amax = state.get(f"{name}.{parameter}_weight_quantizers.{expert}._amax")
            weight.copy_(_fake(weight, weights, amax))
    layer.forward = forward


def _quantize_kv(model: Any, state: dict[str, Tensor]) -> None:
    """Quantize keys and values in an attention function of the test's own."""

    def attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        prefix = f"model.layers.{layer.layer_idx}.self_attn"
        key = _fake(key, FP8, state[f"{prefix}.k_bmm_quantizer._amax"])
        value = _fake(value, FP8, state[f"{prefix}.v_bmm_quantizer._amax"])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](layer, query, key, value, *args, **kwargs)

    AttentionInterface.register("oracle_sdpa", attention)
    AttentionMaskInterface.register("oracle_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("oracle_sdpa")


def _fake(x: Tensor, spec: dict[str, Any], amax: Tensor | None) -> Tensor:
    number = None if amax is None else amax.numpy()
    is_global = spec["global_max"] is not None
    values = oracle.fake_quantize(
        x.float().numpy(), spec, None if is_global else number, number if is_global else None, "bfloat16"
    )
    return torch.from_numpy(values.copy()).to(x.dtype)
