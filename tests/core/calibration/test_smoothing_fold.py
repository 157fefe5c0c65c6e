"""Finalizing folds smoothing into norms and layers, exactly but for rounding, and is undone bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig

import octavo
from helpers.calibration_snapshot import same_bits, snapshot
from helpers.smoothed_models import PRESETS, smoothed
from helpers.tiny import tiny_llama, token_batches
from octavo.core.calibration import smoothing_fold
from octavo.core.calibration.finalize import finalization_notes, folded_layers
from octavo.core.modules import tensor_quantizers

IDS = token_batches()[0]
KEPT = {"o_proj", "down_proj"}


@torch.no_grad()
def logits(model: nn.Module, rounded: bool = True) -> Tensor:
    """Return logits, without rounding if asked: factors still multiply."""
    before = [(quantizer, quantizer.enabled) for _, quantizer in tensor_quantizers(model)]
    for quantizer, enabled in before:
        quantizer.enabled = enabled and rounded
    found: Tensor = model(IDS).logits
    for quantizer, enabled in before:
        quantizer.enabled = enabled
    return found


def with_factor(model: nn.Module) -> set[str]:
    """Return the short names of the layers whose inputs are multiplied."""
    return {
        name.split(".")[-2]
        for name, quantizer in tensor_quantizers(model)
        if name.endswith("input_quantizer") and quantizer.pre_quant_scale is not None
    }


@pytest.mark.parametrize(
    ("preset", "kept"),
    [
        ("INT8_SMOOTHQUANT_CFG", {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"} | KEPT),
        ("INT4_AWQ_CFG", KEPT),
        ("W4A8_AWQ_BETA_CFG", KEPT),
        ("NVFP4_AWQ_LITE_CFG", {"o_proj"}),  # its values have fewer heads than its queries
    ],
)
def test_a_folded_model_computes_the_same_but_for_rounding(preset: str, kept: set[str]) -> None:
    plain = logits(tiny_llama(), rounded=False)
    model = smoothed(preset, tiny_llama())

    octavo.finalize(model, "unified_hf")

    assert with_factor(model) == kept
    assert torch.allclose(logits(model, rounded=False), plain, atol=1e-5)
    assert not torch.allclose(logits(model), plain, atol=1e-3)
    assert finalization_notes(model) == ()
    assert {name.rpartition(".")[2] for name in folded_layers(model)} == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", *KEPT,
    } - kept  # fmt: skip


def test_norms_that_multiply_by_one_plus_their_weight() -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GemmaConfig(vocab_size=64, num_key_value_heads=4, head_dim=32, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain = logits(model)
    model = smoothed("INT4_AWQ_CFG", model)

    octavo.finalize(model, "unified_hf")

    assert with_factor(model) == KEPT
    assert torch.allclose(logits(model, rounded=False), plain, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_unfinalizing_is_exact(preset: str) -> None:
    model = smoothed(preset)
    before, expected = snapshot(model), logits(model)

    with octavo.finalized(model, "unified_hf"):
        assert not same_bits(logits(model), expected)

    assert snapshot(model) == before
    assert same_bits(logits(model), expected)


def test_an_interrupted_fold_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed("INT4_AWQ_CFG")
    before, calls = snapshot(model), iter(range(100))

    def interrupted(norm: nn.Module) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return "weight"

    monkeypatch.setattr(smoothing_fold, "norm_kind", interrupted)
    with pytest.raises(KeyboardInterrupt):
        octavo.finalize(model, "unified_hf")

    assert snapshot(model) == before


def test_a_norm_that_something_else_reads_stays_and_the_reason_is_said() -> None:
    model = smoothed("INT4_AWQ_CFG")
    layer = model.get_submodule("model.layers.1")
    forward = layer.mlp.forward
    layer.mlp.forward = lambda x: forward(x) + 0 * x

    octavo.finalize(model, "unified_hf")

    (note,) = finalization_notes(model)
    assert "model.layers.1.mlp.gate_proj" in note
    assert note.endswith("something else reads what model.layers.1.post_attention_layernorm makes, too")
    assert not folded_layers(model) & {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}
    assert "model.layers.0.mlp.gate_proj" in folded_layers(model)


def test_without_inputs_to_try_nothing_is_folded_into_norms() -> None:
    model = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 64)).bfloat16()
    config = {**octavo.merge_configs("INT4_AWQ_CFG"), "algorithm": "max"}
    octavo.quantize(model, config, quiet=True)
    smoothing_fold_state(model)

    octavo.finalize(model, "unified_hf")

    assert finalization_notes(model) == (
        "pre_quant_scale of 1 is not folded into a norm: who else reads what their norms make could not be seen: no "
        "plugin knows the model's inputs",
    )


def smoothing_fold_state(model: nn.Module) -> None:
    from octavo.core.calibration.smoothing_state import smooth

    smooth("1", model[1], torch.linspace(0.5, 2, 128))  # type: ignore[index]
