"""PEFT's LoRA over packed weights, and over fake-quantized ones."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import octavo
from helpers.adapted_models import CONFIGS, TOKENS, compressed, logits, stories
from octavo.core.errors import UnsupportedError
from octavo.core.modes.record import history

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("reference_kernels"),  # bits of products are compared
]
LAYERS = ["q_proj", "up_proj"]


def with_lora(model: nn.Module, zero: bool = False) -> Any:
    """Put LoRA adapters around `LAYERS`; by default random ones, which change the output."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=LAYERS, init_lora_weights=zero)
    return peft.get_peft_model(model, config).eval()


def quantized(config: str) -> nn.Module:
    return octavo.quantize(stories(), CONFIGS[config], [TOKENS], quiet=True)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(TOKENS, labels=TOKENS).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def losses(model: nn.Module, steps: int = 4) -> list[float]:
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    seen = []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("config", CONFIGS)
def test_output_and_gradients_are_those_over_the_dense_values(config: str) -> None:
    packed = compressed(config)
    dense = octavo.decompress(copy.deepcopy(packed)).requires_grad_(False)
    before = logits(packed)
    packed, dense = with_lora(packed), with_lora(dense)

    assert torch.equal(logits(packed), logits(dense))
    assert not torch.equal(logits(packed), before)
    found, expected = gradients(packed), gradients(dense)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * 5, "A and B of two layers in each of five blocks, and nothing else"
    for name, gradient in found.items():
        assert "lora_" in name
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", ["INT8_WEIGHT_ONLY_CFG", "W4A16_NVFP4_CFG"])
def test_gradients_of_one_layer_in_float64(config: str) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 16)).double()
    octavo.compress(octavo.quantize(base, getattr(octavo, config), quiet=True), dialect="neutral", quiet=True)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    layer = model.base_model.model[0]
    down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    x = torch.randn(3, 32, dtype=torch.float64)

    def output(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        weights = {"lora_A.default.weight": down, "lora_B.default.weight": up}
        result: Tensor = torch.func.functional_call(layer, weights, (x,))
        return result

    inputs = [one.double().requires_grad_() for one in (x, down, up)]
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("base", [compressed, quantized])
def test_training_lowers_the_loss_and_adapters_come_back(base: Any, config: str, tmp_path: Path) -> None:
    untouched = logits(base(config))
    model = with_lora(base(config), zero=True)
    assert torch.equal(logits(model), untouched), "an adapter of zeros changes no bit"

    seen = losses(model)

    assert all(later < earlier for earlier, later in pairwise(seen))
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert len(names) == 20
    assert all("lora_" in name for name in names)
    reloaded = peft.PeftModel.from_pretrained(base(config), tmp_path).eval()
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("merge", ["merge_adapter", "safe", "merge_and_unload"])
def test_merging_into_codes_is_refused_and_changes_nothing(merge: str) -> None:
    model = with_lora(compressed("NVFP4"))
    before = logits(model)
    calls = {
        "merge_adapter": model.merge_adapter,
        "safe": lambda: model.merge_adapter(safe_merge=True),
        "merge_and_unload": model.merge_and_unload,
    }

    with pytest.raises(
        UnsupportedError, match=r"add_\.Tensor of a weight \(64, 64\).*e2m1.*octavo\.decompress\(model\)"
    ):
        calls[merge]()

    assert torch.equal(logits(model), before)


def test_decompressed_weights_take_the_adapters_in() -> None:
    model = with_lora(compressed("NVFP4"))
    expected = logits(model)
    base = model.get_base_model()

    octavo.decompress(model)

    assert torch.equal(logits(model), expected)
    assert [record.mode for record in history(base)] == ["quantize", "fold_weight"]
    assert not history(model), "the history stays with the model that was quantized"
    merged = model.merge_and_unload()
    assert merged is base
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_fake_quantized_weights_take_the_adapters_in_and_are_rounded_again() -> None:
    model = with_lora(quantized("NVFP4"))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    weight, delta = layer.base_layer.weight.detach().clone(), layer.get_delta_weight("default")

    merged = model.merge_and_unload()

    layer = merged.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "QuantLinear"
    torch.testing.assert_close(layer.weight, weight + delta)
    rounded = layer.weight_quantizer(layer.weight)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), nn.functional.linear(x, rounded))


@pytest.mark.parametrize(
    ("config", "dialect"),
    [("NVFP4", "unified_hf"), ("NVFP4", "compressed_tensors"), ("INT8", "compressed_tensors")],
)
@pytest.mark.parametrize("base", [compressed, quantized])
def test_merged_adapters_are_in_the_checkpoint_that_engines_read(
    base: Any, config: str, dialect: str, tmp_path: Path
) -> None:
    model = with_lora(base(config))
    merged = octavo.merge_adapters(model, forward_loop=[TOKENS], quiet=True)
    with octavo.finalized(merged, dialect):
        expected = logits(merged)

    octavo.plugins().exporter(dialect).export(merged, tmp_path, quiet=True)

    assert torch.equal(logits(octavo.load_quantized(tmp_path)), expected)
    assert [one for one in octavo.verify_checkpoint(tmp_path, "vllm") if one.severity == "error"] == []


def test_adapters_that_were_rounded_with_the_weights_are_served_as_trained(tmp_path: Path) -> None:
    targets = [f"{name}.weight" for name in LAYERS]
    adapters = peft.LoraConfig(r=4, target_modules=[], target_parameters=targets)
    model = octavo.add_adapters(quantized("NVFP4"), adapters)
    untouched = logits(model)
    losses(model)
    trained = logits(model)

    merged = octavo.merge_adapters(model, quiet=True)

    octavo.export_hf_checkpoint(merged, export_dir=tmp_path, target="vllm", quiet=True)
    served = logits(octavo.load_quantized(tmp_path))
    assert (served - trained).norm() < 0.1 * (trained - untouched).norm(), "a dialect's last bits"
    assert octavo.verify_checkpoint(tmp_path, "vllm") == []


def test_adapters_of_a_bfloat16_model_are_fp32_and_train() -> None:
    model = octavo.quantize(stories().bfloat16(), CONFIGS["NVFP4"], [TOKENS], quiet=True)
    model = with_lora(octavo.compress(model, dialect="neutral", quiet=True), zero=True)

    adapters = {one.dtype for one in model.parameters() if one.requires_grad}
    seen = losses(model)

    assert adapters == {torch.float32}
    assert seen[-1] < seen[0]
