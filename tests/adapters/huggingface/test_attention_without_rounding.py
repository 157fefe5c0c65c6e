"""Attention routed through quantizers that are off equals the plain model bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import octavo
from helpers.adapters_models import FP8_KV, logits, padded_batch, switch_off, tiny_model, tokens
from octavo.adapters.huggingface.attention import (
    interface_layers,
    left_out_layers,
    route_attention,
    unroute_attention,
)
from octavo.core.errors import PlanError, UnsupportedError

# Grouped heads, biases, head norms, soft capping with sliding windows, one fused projection, learned positions.
JOINED = octavo.merge_configs(octavo.INT8_WEIGHT_ONLY_CFG, octavo.FP8_KV_CFG)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "olmo2", "gemma2", "phi3", "gpt2")


SPARSE = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "index_topk": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "head_dim": 8,
}


def routed(model: nn.Module) -> nn.Module:
    """Quantize keys and values, and switch the rounding off."""
    octavo.quantize(model, FP8_KV, [tokens()], quiet=True)
    switch_off(model)
    return model


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        (name, kind)
        for name in ARCHITECTURES
        for kind in ("eager", "sdpa")
        if (name, kind) not in (("gemma2", "sdpa"), ("gpt2", "eager"))
    ],
)  # Gemma 2 caps its attention scores, which SDPA cannot; GPT-2 asks for "eager" by name
def test_padded_batches(architecture: str, attention: str) -> None:
    model, batch = tiny_model(architecture, attention), padded_batch()
    expected = logits(model, batch)

    found = logits(routed(model), batch)

    assert model.config._attn_implementation == attention
    assert torch.equal(found, expected)


def test_an_attention_function_that_a_user_registered_is_the_one_that_runs() -> None:
    def louder(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, 3 * query, *args, **kwargs)

    AttentionInterface.register("louder", louder)
    AttentionMaskInterface.register("louder", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model, batch = tiny_model("llama", "louder"), padded_batch()
    expected = logits(model, batch)
    assert not torch.equal(expected, logits(tiny_model("llama", "sdpa"), batch))

    assert torch.equal(logits(routed(model), batch), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_with_a_cache(stories: str, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories, attn_implementation=attention).eval()
    batch = {
        "input_ids": torch.tensor([[1, 403, 407, 261], [0, 0, 1, 403]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
    }
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected = model.generate(**batch, **options)

    found = routed(model).generate(**batch, **options)

    assert torch.equal(found.sequences, expected.sequences)
    assert all(map(torch.equal, found.logits, expected.logits))


@pytest.mark.parametrize(
    ("architecture", "attention", "sizes"),
    [
        # Masks all but the keys that its indexer chose, under these two names only: routed, attention is dense.
        ("deepseek_v32", "sdpa", SPARSE),
        # Upcasts in its own eager function.
        ("gpt2", "eager", {"reorder_and_upcast_attn": True, "dtype": "bfloat16"}),
    ],
    ids=["sparse attention", "upcast attention"],
)
def test_models_that_ask_for_the_implementation_by_name_are_left_out(
    architecture: str, attention: str, sizes: dict[str, Any]
) -> None:
    model = tiny_model(architecture, attention, **sizes)
    reason = f"Attention asks for the attention implementation '{attention}' by name"

    assert any(reason in warning for warning in octavo.plan(model, JOINED).warnings)
    with pytest.raises(PlanError, match=reason):
        octavo.quantize(model, FP8_KV, [tokens()], quiet=True)


def test_quantizers_that_attention_would_not_run_are_refused() -> None:
    """As when a record or a checkpoint with a quantized cache is restored on such a model."""
    model = octavo.quantize(tiny_model("gpt2", "sdpa"), FP8_KV, [tokens()], quiet=True)
    unroute_attention(model)
    model.set_attn_implementation("eager")

    with pytest.raises(UnsupportedError, match=r"^transformer\.h\.0\.attn: .* 'eager' by name"):
        route_attention(model)


def test_an_implementation_that_asks_for_its_own_name_is_left_out() -> None:
    """Flash attention chooses its kernel by the name that the layer's config says."""
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"

    reason = (
        "the attention implementation 'flash_attention_2' asks for its own name; "
        "load the model with 'sdpa' or 'eager'"
    )
    assert interface_layers(model) == {}
    assert left_out_layers(model) == {f"model.layers.{index}.self_attn": reason for index in range(2)}


def test_an_implementation_that_is_set_later_is_the_one_that_runs() -> None:
    """With the masks that it needs."""
    model = routed(tiny_model("llama", "sdpa"))

    model.set_attn_implementation("eager")

    assert model.model.layers[0].self_attn.config._attn_implementation == "octavo"
    assert torch.equal(logits(model, padded_batch()), logits(tiny_model("llama", "eager"), padded_batch()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_compiled_whole(attention: str) -> None:
    products = [{**FP8_KV["quant_cfg"][0], "quantizer_name": "*.self_attn.[pb]*_quantizer"}]
    rules = FP8_KV["quant_cfg"] + (products if attention == "eager" else [])
    config = {"quant_cfg": rules, "algorithm": "max"}
    model = octavo.quantize(tiny_model("llama", attention), config, [tokens()], quiet=True)
    expected = logits(model)

    found = logits(
        torch.compile(model, backend="aot_eager", fullgraph=True), {"input_ids": tokens(), "use_cache": False}
    )

    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_attention_weights_are_still_returned() -> None:
    model = tiny_model("llama", "eager")
    expected = model(tokens(), output_attentions=True).attentions

    found = routed(model)(tokens(), output_attentions=True).attentions

    assert len(found) == 2
    assert all(map(torch.equal, found, expected))
