"""Smoothing that folds at once: the unrounded model computes the same, and no layer gets worse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, OPTConfig, Qwen2Config

import octavo
from helpers.tiny import VOCABULARY, tiny_llama, token_batches
from octavo.core.calibration.collectors import collecting
from octavo.core.calibration.smooth import Smooth
from octavo.core.errors import UnsupportedError
from octavo.core.modes.record import last_record

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GATED = {"intermediate_size": 96, "num_key_value_heads": 2}
INT8 = {**octavo.merge_configs("INT8_DEFAULT_CFG"), "algorithm": {"method": "smooth", "alpha": 1.0}}


def varied(model: nn.Module) -> nn.Module:
    """Give norms and biases, which start as ones and zeros, values of their own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return model.eval()


def tiny(kind: str) -> nn.Module:
    torch.manual_seed(0)
    configs = {
        "qwen2": lambda: Qwen2Config(**SIZES, **GATED),
        "gemma": lambda: GemmaConfig(**SIZES, **GATED, head_dim=16),
        "opt": lambda: OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64, activation_function="relu"),
        "opt_gelu": lambda: OPTConfig(
            **SIZES, ffn_dim=96, word_embed_proj_dim=64, activation_function="gelu"
        ),
    }
    if kind == "llama":
        return varied(tiny_llama())
    return varied(AutoModelForCausalLM.from_config(configs[kind](), dtype=torch.float32))


def rows_of(model: nn.Module) -> list[dict[str, Any]]:
    record = last_record(model, "quantize")
    assert record is not None
    rows: list[dict[str, Any]] = record.state["report"]["weights"]
    return rows


def folded_into(model: nn.Module) -> set[str]:
    return {row["folded_into"].rpartition(".")[2] for row in rows_of(model) if row.get("folded_into")}


@pytest.mark.parametrize(
    ("kind", "makers"),
    [
        ("llama", {"input_layernorm", "post_attention_layernorm", "v_proj", "up_proj"}),
        ("qwen2", {"input_layernorm", "post_attention_layernorm", "v_proj", "up_proj"}),
        ("gemma", {"input_layernorm", "post_attention_layernorm", "v_proj", "up_proj"}),
        ("opt", {"self_attn_layer_norm", "final_layer_norm", "v_proj", "fc1"}),
        ("opt_gelu", {"self_attn_layer_norm", "final_layer_norm", "v_proj"}),
    ],
)
@torch.no_grad()
def test_the_unrounded_model_computes_what_it_did(kind: str, makers: set[str]) -> None:
    model, batches = tiny(kind), token_batches()
    expected = model(batches[0]).logits
    before = copy.deepcopy(model.state_dict())

    octavo.quantize(model, INT8, batches, quiet=True)
    with collecting(model, {}):
        found = model(batches[0]).logits

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert folded_into(model) == makers
    with pytest.raises(octavo.ModeError, match=r"calibration gave [0-9]+ weights other values"):
        octavo.unquantize(model)
    changed = {
        n.split(".")[-2]
        for n, tensor in model.state_dict().items()
        if n in before and not torch.equal(tensor, before[n])
    }
    assert makers < changed, "and their readers"


def test_an_interrupt_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    original = Smooth.run

    def run(self: Smooth, calibration: Any) -> None:
        original(self, calibration)
        assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items() if n in before)
        raise KeyboardInterrupt

    monkeypatch.setattr(Smooth, "run", run)
    with pytest.raises(KeyboardInterrupt):
        octavo.quantize(model, INT8, token_batches(), quiet=True)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def loud(model: nn.Module) -> nn.Module:
    """Make some channels of every norm loud, as outliers of trained models are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[::17] *= 20
    return model


def inputs_of(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=name: seen.__setitem__(n, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad(), collecting(model, {}):
        model(ids)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def output_errors(model: nn.Module, plain: nn.Module, ids: Tensor) -> dict[str, float]:
    """Return the squared error of each layer's output; rows that folding scaled are scaled back."""
    errors = {}
    for name, x in inputs_of(model, ids).items():
        layer, exact = model.get_submodule(name), plain.get_submodule(name)(inputs_of(plain, ids)[name])
        with collecting(model, {}):
            unrounded = layer(x)
        by_row = (unrounded * exact).sum((0, 1)) / exact.square().sum((0, 1))
        errors[name] = ((layer(x) - unrounded) / by_row).square().sum().item()
    return errors


@pytest.mark.parametrize("preset", ["INT8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
def test_a_search_makes_no_layer_worse(preset: str) -> None:
    plain, batches = loud(tiny("llama")), token_batches(1)
    config = octavo.merge_configs(preset)
    rtn = octavo.quantize(copy.deepcopy(plain), config, batches, quiet=True)
    smoothed = octavo.quantize(copy.deepcopy(plain), {**config, "algorithm": "smooth"}, batches, quiet=True)

    without, with_it = (output_errors(model, plain, batches[0]) for model in (rtn, smoothed))

    readers = {row["weight"].removesuffix(".weight") for row in rows_of(smoothed)}
    assert len(readers) == 14
    # Rows of v_proj and up_proj that were scaled round alike, but for their part of a global scale.
    worse = {name: with_it[name] / without[name] for name in readers if with_it[name] > 1.02 * without[name]}
    assert worse == {}
    assert sum(with_it.values()) < 0.9 * sum(without.values())
    assert all(row["output_error"] <= row["output_error_without"] for row in rows_of(smoothed))


def test_a_plain_checkpoint_is_written(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model, batches = tiny("llama"), token_batches()
    octavo.quantize(model, INT8, batches, quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    assert not [n for n in load_file(tmp_path / "out" / "model.safetensors") if "pre_quant_scale" in n]
    read = octavo.load_quantized(tmp_path / "out")
    with torch.no_grad(), octavo.finalized(model, "unified_hf"):
        assert torch.equal(read(batches[0]).logits, model(batches[0]).logits)


def test_values_that_a_cache_rounds_are_left_alone() -> None:
    config = {**octavo.merge_configs("INT8_DEFAULT_CFG", "FP8_KV_CFG"), "algorithm": "smooth"}
    model = octavo.quantize(tiny("llama"), config, token_batches(), quiet=True)

    reasons = {row["weight"].split(".")[-2]: row["fallback"] for row in rows_of(model) if "fallback" in row}
    assert reasons == {
        "o_proj": "not smoothed: what model.layers.1.self_attn.v_proj makes is rounded on its way"
    }


def test_weights_alone_are_refused() -> None:
    model = tiny_llama()
    message = "^smooth balances inputs that are rounded .*use 'awq_lite' for weights alone$"
    with pytest.raises(UnsupportedError, match=message):
        octavo.quantize(
            model,
            {**octavo.merge_configs("INT4_AWQ_CFG"), "algorithm": "smooth"},
            token_batches(),
            quiet=True,
        )
