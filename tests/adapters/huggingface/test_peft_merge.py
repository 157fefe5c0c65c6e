"""Adapters merged into quantized weights: what was trained, in the format that it was trained in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.adapted_models import CONFIGS, TOKENS, compressed, logits, stories
from octavo.core.modules import QuantModule, packed_layers

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("reference_kernels"),  # bits are compared
]
LAYERS = ["q_proj", "up_proj"]
INT4 = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)


def quantized(config: Any) -> nn.Module:
    return octavo.quantize(stories(), config, [TOKENS], quiet=True)


def adapted(model: nn.Module, on_weights: bool = False) -> Any:
    """Put random adapters beside `LAYERS`, or on their weights."""
    torch.manual_seed(0)
    targets: dict[str, Any] = {"target_modules": LAYERS}
    if on_weights:
        targets = {"target_modules": [], "target_parameters": [f"{name}.weight" for name in LAYERS]}
    return octavo.add_adapters(model, peft.LoraConfig(r=4, init_lora_weights=False, **targets)).eval()


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.05)
    for _ in range(steps):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def up_projection(model: Any) -> Any:
    return model.model.layers[1].mlp.up_proj


def added(model: Any) -> dict[str, Tensor]:
    """Return what adapters add to weights, by the layer's name, from their factors."""
    return {
        name.removeprefix("base_model.model."): layer.scaling["default"]
        * layer.lora_B["default"].weight.detach()
        @ layer.lora_A["default"].weight.detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and name.rpartition(".")[2] in LAYERS
    }


def plain(model: nn.Module, changes: dict[str, Tensor]) -> nn.Module:
    """Return an unquantized model with a model's dense weights and these changes added."""
    result, values = stories(), model.state_dict()
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            parameter.copy_(values[name])
        for name, change in changes.items():
            result.get_parameter(f"{name}.weight").add_(change)
    return result


@pytest.mark.parametrize("config", ["NVFP4", "INT8"])
def test_adapters_that_were_rounded_with_the_weights_merge_to_what_was_trained(config: str) -> None:
    model = adapted(quantized(CONFIGS[config]), on_weights=True)
    base = model.get_base_model()
    scales = up_projection(base).base_layer.weight_quantizer.amax.clone() if config == "INT8" else None
    before = logits(model)
    train(model)
    trained = logits(model)

    merged = octavo.merge_adapters(model, quiet=True)

    assert merged is base
    assert not torch.equal(trained, before)
    assert torch.equal(logits(merged), trained)
    if scales is not None:
        assert torch.equal(up_projection(merged).weight_quantizer.amax, scales)


def test_adapters_beside_the_layers_get_scales_of_the_sums() -> None:
    model = adapted(quantized(INT4))
    expected = octavo.quantize(plain(quantized(INT4), added(model)), INT4, quiet=True)
    stale = up_projection(model.get_base_model()).base_layer.weight_quantizer.amax.clone()

    merged = octavo.merge_adapters(model, quiet=True)

    layer = up_projection(merged)
    assert torch.equal(layer.weight_quantizer.amax, layer.weight.view(-1, 2, 32).abs().amax(-1))
    assert not torch.equal(layer.weight_quantizer.amax, stale)
    assert torch.equal(logits(merged), logits(expected))
    assert [record.mode for record in octavo.history(merged)] == ["quantize"]


@pytest.mark.parametrize("dialect", ["neutral", "compressed_tensors"])
def test_packed_weights_are_merged_in_the_format_of_training(dialect: str) -> None:
    base = octavo.compress(quantized(INT4), dialect=dialect, quiet=True)
    values = octavo.decompress(copy.deepcopy(base))
    model = adapted(base)
    expected = octavo.quantize(plain(values, added(model)), INT4, quiet=True)

    merged = octavo.merge_adapters(model, quiet=True)

    assert torch.equal(logits(merged), logits(expected))
    assert str(up_projection(merged).weight_quantizer.spec) == str(
        up_projection(expected).weight_quantizer.spec
    )
    assert octavo.history(merged)[0].config == octavo.history(expected)[0].config
    assert not list(packed_layers(octavo.decompress(octavo.compress(merged, quiet=True))))


@pytest.mark.parametrize("algorithm", ["awq_lite", {"method": "svdquant", "lowrank": 4}])
def test_factors_and_low_rank_corrections_beside_codes_are_taken_in(algorithm: Any) -> None:
    weights = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*layers.1.mlp.up_proj.weight_quantizer", "cfg": weights},
    ]
    base = quantized({"quant_cfg": rules, "algorithm": algorithm})
    model = adapted(octavo.compress(base, dialect="neutral", quiet=True))
    assert up_projection(base).base_layer.input_quantizer.pre_quant_scale is not None
    trained = logits(model)

    merged = octavo.merge_adapters(model, config="INT8_WEIGHT_ONLY_CFG", quiet=True)

    octavo.disable_quantizer(merged, "*")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)


def test_another_format_is_one_that_is_given() -> None:
    merged = octavo.merge_adapters(adapted(compressed("NVFP4")), config="INT8_WEIGHT_ONLY_CFG", quiet=True)

    layers = [layer for layer in merged.modules() if isinstance(layer, QuantModule)]
    assert {str(layer.weight_quantizer.spec) for layer in layers} == {"int8 channel0"}


def test_data_is_asked_for_before_anything_changes() -> None:
    model = adapted(compressed("INT8"))
    before = logits(model)

    with pytest.raises(
        octavo.CalibrationError, match=r"35 scales of activations \(model\.layers\.0\..*give forward_loop"
    ):
        octavo.merge_adapters(model, quiet=True)
    with pytest.raises(octavo.CalibrationError, match=r"the algorithm 'awq_lite' chooses from data"):
        octavo.merge_adapters(model, config=octavo.INT4_AWQ_CFG, quiet=True)

    assert torch.equal(logits(model), before)
    merged = octavo.merge_adapters(model, forward_loop=[TOKENS], quiet=True)
    assert up_projection(merged).input_quantizer.calibrated


def test_scales_that_cannot_be_held() -> None:
    with pytest.raises(octavo.ConfigError, match=r"scales='kept'; expected one of held, recomputed"):
        octavo.merge_adapters(adapted(quantized(INT4)), scales="kept")  # type: ignore[arg-type]
    with pytest.raises(octavo.ConfigError, match=r"scales='held' needs .* but its weights are packed"):
        octavo.merge_adapters(adapted(compressed("NVFP4")), scales="held")
    with pytest.raises(octavo.ConfigError, match=r"but its weights are folded"):
        octavo.merge_adapters(adapted(octavo.fold_weight(quantized(INT4))), scales="held")
    with pytest.raises(octavo.ConfigError, match=r"but another format was given"):
        octavo.merge_adapters(adapted(quantized(INT4)), config="INT8_WEIGHT_ONLY_CFG", scales="held")


def test_adapters_that_training_has_broken() -> None:
    model = adapted(compressed("NVFP4"))
    layer = up_projection(model.get_base_model())
    torch.nn.init.constant_(layer.lora_B["default"].weight, torch.nan)

    with pytest.raises(
        octavo.TrainingError, match=r"'base_model\..*layers\.1\.mlp\.up_proj\.lora_B.* has NaN"
    ):
        octavo.merge_adapters(model, quiet=True)

    assert list(packed_layers(model.get_base_model())), "nothing was changed"


def test_models_without_adapters_or_without_quantizers() -> None:
    with pytest.raises(
        octavo.UnsupportedError, match=r"LlamaForCausalLM has no adapters .* octavo\.add_adapters"
    ):
        octavo.merge_adapters(quantized(INT4))
    with pytest.raises(octavo.ModeError, match=r"not quantized; call model\.merge_and_unload\(\)"):
        octavo.merge_adapters(adapted(stories()))
    with pytest.raises(
        octavo.ModeError, match=r"over PEFT's layers, adapters included; quantize the model first"
    ):
        octavo.merge_adapters(octavo.quantize(adapted(stories()), "INT8_WEIGHT_ONLY_CFG", quiet=True))
    finalized = quantized(INT4)
    octavo.finalize(finalized, "compressed_tensors")
    with pytest.raises(
        octavo.ModeError, match=r"octavo\.unfinalize\(model\) before merging adapters into it"
    ):
        octavo.merge_adapters(adapted(finalized))
