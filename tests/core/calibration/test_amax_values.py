"""Calibrated maxima equal, to the bit, what a plain run of the unquantized model shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import octavo
from helpers.tiny import tiny_llama, token_batches
from octavo.core.modules import quantized_layers, tensor_quantizers

BATCHES = token_batches(3)
NVFP4 = ("NVFP4_DEFAULT_CFG", "global_amax")


def largest(tensors: list[Tensor]) -> float:
    return max(float(np.abs(tensor.detach().double().numpy()).max()) for tensor in tensors)


@contextmanager
def recording_inputs(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what every linear layer of a plain model reads."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].clone())
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("preset", "state"), [("FP8_DEFAULT_CFG", "amax"), ("INT8_DEFAULT_CFG", "amax"), NVFP4]
)
def test_input_maxima_are_those_of_a_plain_run_over_all_batches(
    preset: str, state: str, dtype: torch.dtype
) -> None:
    plain = tiny_llama(dtype)
    with recording_inputs(plain) as seen, torch.no_grad():
        for ids in BATCHES:
            plain(ids)

    model = octavo.quantize(tiny_llama(dtype), preset, BATCHES, quiet=True)

    found = {
        name: float(getattr(layer.quantizers()["input_quantizer"], state))
        for name, layer in quantized_layers(model)
    }
    assert len(found) == 14
    assert found == {name: largest(seen[name]) for name in found}


@pytest.mark.parametrize("preset", ["FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
def test_weight_maxima_are_those_of_the_weights(preset: str) -> None:
    plain = dict(tiny_llama().named_parameters())

    model = octavo.quantize(tiny_llama(), preset, BATCHES[:1], quiet=True)

    for name, layer in quantized_layers(model):
        weight = plain[f"{name}.weight"].detach().double().abs()
        expected = weight.amax(1) if preset == "INT8_DEFAULT_CFG" else weight.amax()
        (found,) = layer.quantizers()["weight_quantizer"].stages()[0].named_state().values()
        assert found.dtype == torch.float32
        assert torch.equal(found.double(), expected), name


def test_block_maxima_of_weights_are_those_of_each_block() -> None:
    config = octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32)
    model = octavo.quantize(tiny_llama(), config, quiet=True)

    for name, layer in quantized_layers(model):
        weight = layer.quantized_weights()["weight_quantizer"].detach().double()
        blocks = np.abs(weight.numpy()).reshape(weight.shape[0], weight.shape[1] // 32, 32).max(-1)
        found = layer.quantizers()["weight_quantizer"].stages()[0].named_state()["amax"]
        assert np.array_equal(found.double().numpy(), blocks), name


def test_key_and_value_maxima_are_those_that_attention_receives() -> None:
    seen: dict[str, list[Tensor]] = {"k": [], "v": []}

    def record(layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["k"].append(key.clone())
        seen["v"].append(value.clone())
        return ALL_ATTENTION_FUNCTIONS["sdpa"](layer, query, key, value, *args, **kwargs)

    AttentionInterface.register("recording_sdpa", record)
    AttentionMaskInterface.register("recording_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    plain = tiny_llama(num_hidden_layers=1, attn_implementation="recording_sdpa")
    with torch.no_grad():
        for ids in BATCHES:
            plain(ids)

    config = {**octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", "FP8_KV_CFG"), "algorithm": "max"}
    model = octavo.quantize(tiny_llama(num_hidden_layers=1), config, BATCHES, quiet=True)

    found = {
        n[-15]: float(q.amax)
        for n, q in tensor_quantizers(model)
        if n.endswith(("k_bmm_quantizer", "v_bmm_quantizer"))
    }
    assert found == {letter: largest(seen[letter]) for letter in "kv"}
