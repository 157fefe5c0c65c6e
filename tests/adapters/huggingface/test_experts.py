"""Stacked experts: what they compute, one by one, with and without quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import octavo
from helpers.adapters_models import logits, switch_off, tiny_model, tokens
from octavo.core.formats import fake_quantize
from octavo.core.modules import QuantExperts, quantized_layers

SIZES: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
STACKED = "model.layers.0.mlp.experts"


def moe(model_type: str = "qwen3_moe", **changes: Any) -> nn.Module:
    model = tiny_model(model_type, **SIZES, **changes)
    model.set_experts_implementation("eager")
    return model


def experts_of(model: nn.Module) -> dict[str, QuantExperts]:
    return {name: layer for name, layer in quantized_layers(model) if isinstance(layer, QuantExperts)}


@pytest.mark.parametrize(
    "model_type", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "phimoe", "llama4_text"]
)
def test_with_quantizers_off_the_logits_are_those_of_the_plain_model(model_type: str) -> None:
    """Transposed, interleaved and biased experts (gpt-oss) and plain ones, in transformers' eager order."""
    model = moe(model_type)
    plain = logits(model)
    octavo.quantize(model, octavo.FP8_DEFAULT_CFG, [tokens()], quiet=True)
    assert len(experts_of(model)) == 2

    switch_off(model)

    assert torch.allclose(logits(model), plain, rtol=1e-5, atol=1e-6)
    octavo.unquantize(model)
    assert torch.equal(logits(model), plain)


def test_every_expert_computes_with_its_own_scales() -> None:
    model = octavo.quantize(moe(), octavo.NVFP4_DEFAULT_CFG, [tokens()], quiet=True)
    layer: Any = experts_of(model)[STACKED]
    x, chosen = torch.randn(6, 64), torch.tensor([[0, 3], [3, 1], [0, 1], [2, 0], [1, 2], [3, 2]])
    factors = torch.rand(6, 2)

    expected = torch.stack([
        sum(factors[t, k] * run_one(layer, int(chosen[t, k]), x[t]) for k in range(2)) for t in range(6)
    ])  # fmt: skip

    assert torch.allclose(layer(x, chosen, factors), expected, rtol=1e-5, atol=1e-6)


def run_one(layer: Any, expert: int, x: Tensor) -> Tensor:
    """Run one expert on one token, quantized by the reference functions."""

    def projected(name: str, value: Tensor) -> Tensor:
        inputs, weights = (
            getattr(layer, f"{name}_input_quantizer"),
            getattr(layer, f"{name}_weight_quantizer"),
        )
        state = [tensor[expert] for tensor in weights.state_tensors()]
        weight = fake_quantize(getattr(layer, name)[expert], state, weights.spec.unstacked())
        return linear(fake_quantize(value[None], inputs.state_tensors(), inputs.spec), weight)[0]

    gate, up = projected("gate_up_proj", x).chunk(2)
    return projected("down_proj", nn.functional.silu(gate) * up)


def test_scales_are_per_expert_and_the_inputs_are_shared() -> None:
    model = octavo.quantize(moe(), octavo.NVFP4_DEFAULT_CFG, [tokens()], quiet=True)

    layer: Any = experts_of(model)[STACKED]

    expected = layer.gate_up_proj.abs().amax((1, 2))
    assert torch.equal(layer.gate_up_proj_weight_quantizer.global_amax, expected)
    assert layer.gate_up_proj_input_quantizer.global_amax.shape == ()
    assert [name for name, _ in layer.named_children() if name.endswith("quantizer")] == [
        "gate_up_proj_input_quantizer", "gate_up_proj_weight_quantizer",
        "down_proj_input_quantizer", "down_proj_weight_quantizer",
    ]  # fmt: skip


def test_gradients_reach_the_chosen_experts_only() -> None:
    model = octavo.quantize(moe(), octavo.FP8_DEFAULT_CFG, [tokens()], quiet=True)
    layer: Any = experts_of(model)[STACKED]

    layer(torch.randn(3, 64), torch.tensor([[0, 2]] * 3), torch.rand(3, 2)).sum().backward()

    assert [bool(grad.any()) for grad in layer.gate_up_proj.grad] == [True, False, True, False]


def test_experts_left_out_are_written_as_they_are(tmp_path: Any) -> None:
    config = octavo.merge_configs(
        octavo.FP8_DEFAULT_CFG, {"quant_cfg": [{"quantizer_name": "*.experts.*", "enable": False}]}
    )
    model = octavo.quantize(moe(), config, [tokens()], quiet=True)
    assert not experts_of(model)

    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    read: Any = octavo.load_quantized(tmp_path / "out")

    found, expected = (m.get_submodule(STACKED) for m in (read, model))
    assert torch.equal(found.gate_up_proj, expected.gate_up_proj)
    assert torch.equal(found.down_proj, expected.down_proj)


def test_saving_and_restoring(tmp_path: Any) -> None:
    model = octavo.quantize(moe(), octavo.NVFP4_DEFAULT_CFG, [tokens()], quiet=True)

    octavo.save(model, tmp_path / "state")
    restored = octavo.restore(moe(), tmp_path / "state")

    assert torch.equal(logits(restored), logits(model))
