"""Keys and values are rounded after RoPE, by scales that calibration saw there, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import octavo
from helpers.adapters_models import FP8_KV, NVFP4_KV, logits, tiny_model, tokens
from octavo.core.errors import PlanError
from oracles import number_formats as oracle

PLAIN = {"arithmetic": "multiply", "ties": "even"}
FP8 = {
    **PLAIN,
    "element": "e4m3",
    "granularity": {"kind": "tensor"},
    "scale": "float32",
    "global_max": None,
    "dynamic": False,
}
NVFP4 = {
    **PLAIN,
    "element": "e2m1",
    "granularity": {"kind": "block", "sizes": {"-1": 16}},
    "scale": "e4m3",
    "global_max": 2688.0,
    "dynamic": True,
}
Seen = list[tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Query, key and value that reach the real attention kernel, one entry for each call of a layer."""
    calls: Seen = []
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((query, key, value))
        return kernel(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    return calls


def rounded(x: Tensor, spec: dict[str, Any]) -> Tensor:
    """The oracle's rounding of `x`, calibrated on `x` itself."""
    amax = x.abs().amax().numpy()
    is_global = spec["global_max"] is not None
    values = oracle.fake_quantize(
        x.numpy(), spec, None if is_global else amax, amax if is_global else None, "float32"
    )
    return torch.from_numpy(values.copy())


@pytest.mark.parametrize(("config", "spec"), [(FP8_KV, FP8), (NVFP4_KV, NVFP4)], ids=["FP8", "NVFP4"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_the_kernel_gets_rounded_keys_and_values(
    architecture: str, config: dict[str, Any], spec: dict[str, Any], seen: Seen
) -> None:
    model = tiny_model(architecture, "sdpa")
    logits(model)
    query, key, value = seen[0]  # of the first layer: what reaches the second one is moved by the first
    octavo.quantize(model, config, [tokens()], quiet=True)
    seen.clear()

    logits(model)

    assert len(seen) == 2
    assert torch.equal(seen[0][0], query), "the query has no quantizer"
    assert torch.equal(seen[0][1], rounded(key, spec))
    assert torch.equal(seen[0][2], rounded(value, spec))
    assert not torch.equal(seen[0][1], key)


def test_keys_are_rounded_after_rope_and_values_by_a_scale_of_their_own(seen: Seen) -> None:
    model = tiny_model("llama", "sdpa")
    projected: dict[str, Tensor] = {}
    for letter in "kv":
        model.get_submodule(f"model.layers.0.self_attn.{letter}_proj").register_forward_hook(
            lambda _, __, output, letter=letter: projected.update({letter: output})
        )

    octavo.quantize(model, FP8_KV, [tokens()], quiet=True)
    attention = model.get_submodule("model.layers.0.self_attn")
    seen.clear()
    logits(model)
    key = projected["k"].view(2, 12, 2, 16).transpose(1, 2)

    assert attention.v_bmm_quantizer.amax == projected["v"].abs().max()
    assert torch.equal(seen[0][1][:, :, 0], attention.k_bmm_quantizer(key)[:, :, 0]), (
        "position 0 is not rotated"
    )
    assert not torch.equal(seen[0][1][:, :, 1:], attention.k_bmm_quantizer(key)[:, :, 1:])


def test_linear_layers_stay_plain_under_a_kv_preset_alone() -> None:
    model = octavo.quantize(tiny_model("llama"), FP8_KV, [tokens()], quiet=True)

    assert {type(layer).__name__ for layer in model.modules() if isinstance(layer, octavo.QuantModule)} == {
        "QuantLlamaAttention"
    }


def test_generation_with_a_cache_equals_generation_without(stories: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories).eval()
    ids = torch.tensor([[1, 403, 407, 261, 378]])
    octavo.quantize(model, FP8_KV, [ids], quiet=True)

    cached, whole = (
        model.generate(ids, max_new_tokens=16, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )

    assert torch.equal(cached, whole)


def test_head_dims_that_blocks_do_not_divide_are_refused_by_name(stories: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories)

    with pytest.raises(
        PlanError, match=r"layers\.0\.self_attn\.k_bmm_quantizer: last dim 8 is not divisible .* 16 of"
    ):
        octavo.quantize(model, NVFP4_KV, [tokens()], quiet=True)
