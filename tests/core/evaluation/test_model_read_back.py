"""What a model read back is: its mode, dtype, weights, activations, history, and what can be done with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import calibrated_state
from helpers.calibration_snapshot import same_bits
from helpers.evaluation_checkpoints import quantized
from helpers.tiny import tiny_llama, token_batches
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.modules import quantized_layers

IDS = token_batches(2)[1]
MASK = (torch.arange(24)[None] < torch.tensor([[24], [7]])).long()
PRESETS = "FP8_DEFAULT_CFG+FP8_KV_CFG"


@torch.no_grad()
def logits(model: nn.Module) -> list[Tensor]:
    return [model(IDS).logits, model(input_ids=IDS * MASK, attention_mask=MASK).logits]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint") / "out"
    octavo.export_hf_checkpoint(quantized(tiny_llama(torch.bfloat16), PRESETS), export_dir=place, quiet=True)
    return place


def test_the_model_is_in_eval_mode_with_the_dtype_of_its_config(folder: Path) -> None:
    model = octavo.load_quantized(str(folder))

    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not hasattr(model.config, "quantization_config")


def test_no_module_of_a_model_in_eval_mode_is_in_training_mode(folder: Path) -> None:
    assert [name for name, module in octavo.load_quantized(folder).named_modules() if module.training] == []


def test_weights_hold_what_their_codes_stand_for_and_activations_are_quantized(folder: Path) -> None:
    model = quantized(tiny_llama(torch.bfloat16), PRESETS)
    served = octavo.load_quantized(folder)

    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        for name, layer in quantized_layers(model):
            for weight in layer.quantized_weights().values():
                expected = layer.quantizers()["weight_quantizer"](weight)
                assert same_bits(served.get_parameter(f"{name}.weight"), expected)
        activations = {k: v for k, v in calibrated_state(model).items() if "weight_quantizer" not in k}
    assert calibrated_state(served) == activations
    assert len(activations) == 14 + 4


def test_a_model_read_back_has_a_history_and_can_be_unquantized(folder: Path) -> None:
    served = octavo.load_quantized(folder)
    (record,) = octavo.history(served)
    assert (record.mode, record.version, record.config) == ("quantize", 1, {"checkpoint": str(folder)})

    octavo.unquantize(served)

    assert [type(m) for m in served.modules()] == [type(m) for m in tiny_llama(torch.bfloat16).modules()]
    assert served.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    with torch.no_grad():
        assert not torch.equal(served(IDS).logits, octavo.load_quantized(folder)(IDS).logits)


def test_reading_twice_and_finalizing_change_nothing(folder: Path) -> None:
    served = octavo.load_quantized(folder)
    expected = logits(octavo.load_quantized(folder))

    with octavo.finalized(served, "unified_hf"):
        found = logits(served)

    assert all(same_bits(one, other) for one, other in zip(found, expected, strict=True))


def test_perplexity_of_a_model_read_back_is_the_simulations(folder: Path) -> None:
    model = quantized(tiny_llama(torch.bfloat16), PRESETS)
    batches = [{"input_ids": IDS * MASK, "attention_mask": MASK}]

    with octavo.finalized(model, "unified_hf"):
        expected = octavo.perplexity(model, batches)

    assert octavo.perplexity(octavo.load_quantized(folder), batches) == expected
    assert exporter_of(folder).name == "unified_hf"
