"""What the adapter says of a model: its family, and the smallest inputs that run it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

import octavo
from helpers.adapters_models import SIZES, tiny_model
from octavo.adapters.huggingface.plugin import describe_model, is_transformers_model, tiny_inputs


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_families_with_a_map_are_described(model_type: str) -> None:
    description = describe_model(tiny_model(model_type))

    assert description is not None
    assert description.family == model_type
    assert [block.name for block in description.blocks] == ["model.layers.0", "model.layers.1"]
    assert description.hyperparameters["num_kv_heads"] == 2
    assert description.roles["lm_head"] == "lm_head"


def test_families_without_a_map_go_by_name() -> None:
    assert describe_model(tiny_model("exaone4")) is None


@pytest.mark.parametrize(
    ("model_type", "device"),
    [*itertools.product(["llama", "gemma2", "gpt2", "gpt_neox"], ["cpu", "meta"]), ("bloom", "cpu")],
)  # Bloom wants a mask of two dims; on meta, where it is ready-made, the plan notes that its probe failed
def test_tiny_inputs_run_the_model(model_type: str, device: str) -> None:
    with torch.device(device):
        model = tiny_model(model_type)

    output = model(**tiny_inputs(model))

    assert output.logits.shape == (1, 4, 128)
    assert output.past_key_values is None, "no cache is made"


def test_a_classifier_is_a_text_model_too() -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3)).eval()

    assert model(**tiny_inputs(model)).logits.shape == (1, 3)


IMAGE_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_image_models_get_one_image_of_the_configs_size() -> None:
    model = ViTModel(ViTConfig(**IMAGE_SIZES, image_size=(32, 48), patch_size=16, num_channels=1))

    assert {name: tuple(value.shape) for name, value in tiny_inputs(model).items()} == {
        "pixel_values": (1, 1, 32, 48)
    }
    assert model(**tiny_inputs(model)).last_hidden_state.shape == (1, 7, 32)


def test_models_of_something_else_have_no_tiny_inputs() -> None:
    model = Wav2Vec2Model(Wav2Vec2Config(**IMAGE_SIZES, conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,)))

    assert is_transformers_model(model)
    assert tiny_inputs(model) is None


def test_a_class_that_only_has_the_name_is_not_transformers() -> None:
    PreTrainedModel = type("PreTrainedModel", (nn.Module,), {})

    assert not is_transformers_model(PreTrainedModel())


def test_an_encoder_is_quantized_without_a_family_map() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=128))

    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)

    assert type(model.bert.encoder.layer[0].output.dense).__name__ == "QuantLinear"


def test_an_encoder_decoder_is_quantized() -> None:
    sizes = {"vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    plan = octavo.plan(model, "INT8_WEIGHT_ONLY_CFG")
    assert not plan.errors
    assert not any("probe" in warning for warning in plan.warnings)

    octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
