"""Loading a checkpoint, building its skeleton, and its tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import octavo
from helpers.tiny import tiny_llama
from octavo.core.errors import CheckpointError, ConfigError, ModeError, OctavoError, PluginError
from octavo.core.modes.saved_record import HF_METHOD
from octavo.core.plugins import plugins


@pytest.fixture
def copied(stories: Path, tmp_path: Path) -> Path:
    shutil.copytree(stories, tmp_path / "model")
    return tmp_path / "model"


def with_config(directory: Path, **changes: object) -> Path:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def test_the_dtype_is_the_configs_unless_one_is_asked_for(copied: Path) -> None:
    with_config(copied, torch_dtype="float16")

    assert plugins().load_model(copied, None, False).dtype == torch.float16
    assert plugins().load_model(copied, torch.bfloat16, False).dtype == torch.bfloat16


def test_models_come_in_eval_mode_with_their_weights(stories: Path) -> None:
    model = plugins().load_model(stories, None, False)

    assert not any(module.training for module in model.modules())
    assert model.state_dict()["model.norm.weight"].std() > 0, "trained, not initial"


def test_a_skeleton_ignores_how_the_checkpoint_is_quantized(copied: Path) -> None:
    with_config(copied, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})

    with torch.device("meta"):
        model = plugins().build_model(copied, torch.bfloat16, False)

    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not hasattr(model.config, "quantization_config")
    assert not model.training


def test_the_tokenizer_of_a_folder(stories: Path) -> None:
    assert plugins().load_tokenizer(stories, False)("Once").input_ids[0] == 1


@pytest.mark.parametrize(("verb", "call"), [("load", "load_model"), ("build", "build_model")])
def test_a_folder_without_a_config_is_nobodys(tmp_path: Path, verb: str, call: str) -> None:
    with pytest.raises(
        PluginError,
        match=re.escape(
            f"no plugin can {verb} {tmp_path}; loaded: huggingface, deepspeed_zero, megatron_core"
        ),
    ):
        getattr(plugins(), call)(tmp_path, torch.float32, False)


def test_a_missing_folder_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=f"{tmp_path / 'gone'}.*(does not exist|config.json)"):
        plugins().load_model(tmp_path / "gone", None, False)


@pytest.mark.parametrize("damage", ["truncated weights", "no weights", "config is not JSON", "no tokenizer"])
def test_a_damaged_checkpoint_is_an_octavo_error_that_names_it(copied: Path, damage: str) -> None:
    weights = copied / "model.safetensors"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "config is not JSON":
        (copied / "config.json").write_text("{")
    else:
        (copied / "tokenizer.json").unlink()

    with pytest.raises(OctavoError, match=str(copied)):
        plugins().load_model(copied, None, False) and plugins().load_tokenizer(copied, False)


def tiny_bert() -> BertForSequenceClassification:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=64, num_labels=3)).eval()


def test_the_class_is_the_one_that_the_config_names(tmp_path: Path) -> None:
    bert = tiny_bert()
    bert.save_pretrained(tmp_path)

    loaded, built = plugins().load_model(tmp_path, None, False), plugins().build_model(tmp_path, None, False)

    assert [type(loaded), type(built)] == [BertForSequenceClassification] * 2
    weights = bert.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    "architectures", [None, [], ["BertForMaskedLM"], ["AutoTokenizer"], ["torch"], ["SomebodysModel"]]
)
def test_a_class_of_another_kind_is_not_looked_for(copied: Path, architectures: list[str] | None) -> None:
    """A name that is no model class of this config's type stands for none."""
    with_config(copied, architectures=architectures)

    assert type(plugins().build_model(copied, None, False)).__name__ == "LlamaForCausalLM"
    assert type(plugins().load_model(copied, None, False)).__name__ == "LlamaForCausalLM"


def test_perplexity_of_a_model_without_a_language_head_is_refused(copied: Path) -> None:
    model = plugins().load_model(with_config(copied, architectures=["LlamaModel"]), None, False)

    with pytest.raises(
        ConfigError, match=r"^LlamaModel returns BaseModelOutputWithPast, which has no logits; "
    ):
        octavo.perplexity(model, [{"input_ids": torch.arange(6)[None]}])


def test_a_checkpoint_that_is_quantized_already_is_not_loaded_as_weights(copied: Path) -> None:
    with_config(copied, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})

    with pytest.raises(
        CheckpointError, match=rf"^{copied} is quantized already \(unified_hf\).*original model"
    ):
        plugins().load_model(copied, None, False)


def test_a_folder_that_save_wrote_is_not_loaded_as_weights(copied: Path) -> None:
    with_config(copied, quantization_config={"quant_method": HF_METHOD})

    with pytest.raises(CheckpointError, match=rf"quant_method '{HF_METHOD}' in config.json.*original model"):
        plugins().load_model(copied, None, False)


@pytest.mark.parametrize("method", ["modelopt", "compressed-tensors"])
def test_a_model_that_transformers_read_from_codes_is_not_quantized(method: str) -> None:
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": method}

    with pytest.raises(
        ModeError, match=rf"LlamaForCausalLM was loaded.*quant_method '{method}'.*original model"
    ):
        octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
    with pytest.raises(ModeError, match="quantized already"):
        octavo.plan(model, "INT8_WEIGHT_ONLY_CFG")


def test_building_draws_nothing_and_sets_buffers(stories: Path) -> None:
    loaded, state = plugins().load_model(stories, None, False), torch.get_rng_state()

    built = plugins().build_model(stories, None, False)

    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config.tie_word_embeddings == (built.lm_head.weight is built.model.embed_tokens.weight)
    buffers = dict(built.named_buffers())
    assert buffers
    assert all(torch.equal(buffers[name], buffer) for name, buffer in loaded.named_buffers())
