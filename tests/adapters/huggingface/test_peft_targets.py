"""Targets of adapters that do not exist in a quantized model, and those that are no layers of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo
from helpers.adapted_models import CONFIGS, TOKENS, compressed, stories

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def quantized() -> nn.Module:
    return octavo.quantize(stories(), CONFIGS["NVFP4"], [TOKENS], quiet=True)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj", "up_proj"], r"target_modules has 'q_prj', and no module .* Did you mean 'q_proj'\?"),
        (["self_att.q_proj"], r"'self_att\.q_proj', .* Did you mean 'self_attn\.q_proj'\?"),
        ("model.*q_prj", r"'model\.\*q_prj', and no module"),
        (
            ["weight_quantizer"],
            r"'weight_quantizer', which names 35 quantizers or packed weights \(first 'model\.layers\.0\.",
        ),
        (".*mlp.*", r"'\.\*mlp\.\*', which names \d+ quantizers .* set exclude_modules="),
    ],
)
def test_modules(targets: Any, message: str) -> None:
    with pytest.raises(octavo.ConfigError, match=message):
        octavo.add_adapters(quantized(), peft.LoraConfig(target_modules=targets))


def test_the_advice_for_patterns_works() -> None:
    config = peft.LoraConfig(target_modules=r".*mlp\..*_proj", exclude_modules=r".*(quantizer|packed).*")

    model = octavo.add_adapters(compressed("NVFP4"), config)

    assert sum(name.endswith("lora_A.default") for name, _ in model.named_modules()) == 3 * 5


def test_packed_weights_that_are_named() -> None:
    with pytest.raises(
        octavo.ConfigError, match=r"'weight_packed', which names 35 .* adapters go over layers"
    ):
        octavo.add_adapters(compressed("NVFP4"), peft.LoraConfig(target_modules=["weight_packed"]))


@pytest.mark.parametrize("target", ["q_proj.weight", "q_proj.weight_packed.payload"])
def test_parameters_that_are_codes(target: str) -> None:
    config = peft.LoraConfig(target_modules=[], target_parameters=[target])

    with pytest.raises(
        octavo.ConfigError,
        match=rf"target_parameters has '{target}', which is held in codes \(model\.layers\.0\..*octavo\.decompress",
    ):
        octavo.add_adapters(compressed("NVFP4"), config)


def test_parameters_that_do_not_exist() -> None:
    config = peft.LoraConfig(target_modules=[], target_parameters=["up_prj.weight"])

    with pytest.raises(
        octavo.ConfigError, match=r"'up_prj\.weight', and no parameter .* Did you mean 'up_proj\.weight'\?"
    ):
        octavo.add_adapters(quantized(), config)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, {"q_proj", "v_proj"}),
        ("all-linear", {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}),
    ],
)
def test_what_peft_chooses_itself(targets: Any, expected: set[str]) -> None:
    config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM")

    model = octavo.add_adapters(compressed("NVFP4"), config)

    names = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    assert {name.split(".")[-3] for name in names} == expected
