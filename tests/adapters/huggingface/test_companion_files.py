"""The files beside the weights: config, generation config, tokenizer, chat template; the model is left alone."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaModel

from helpers.adapters_models import SIZES, tiny_model
from octavo.adapters.huggingface.checkpoint import write_companion_files

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def config_of(directory: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return data


def test_config_names_dtype_and_architecture(tmp_path: Path) -> None:
    write_companion_files(tiny_model("llama"), tmp_path, None, torch.bfloat16)

    assert config_of(tmp_path)["dtype"] == "bfloat16"
    assert config_of(tmp_path)["architectures"] == ["LlamaForCausalLM"]
    assert "octavo" not in (tmp_path / "config.json").read_text()


def test_the_architecture_is_the_models_class_as_save_pretrained_writes_it(tmp_path: Path) -> None:
    """A classifier that began as a language model's checkpoint is read back as a classifier."""
    model = tiny_model("llama", architectures=["LlamaForSequenceClassification"])
    write_companion_files(model, tmp_path, None, torch.float32)

    assert config_of(tmp_path)["architectures"] == ["LlamaForCausalLM"]


def test_the_models_own_config_is_not_modified(tmp_path: Path) -> None:
    model = tiny_model("llama")
    config, generation = copy.deepcopy(vars(model.config)), model.generation_config.to_dict()

    write_companion_files(model, tmp_path, None, torch.float16)

    assert vars(model.config) == config
    assert model.generation_config.to_dict() == generation


def test_generation_config_as_the_model_has_it_now(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.max_new_tokens = 77
    write_companion_files(model, tmp_path, None, torch.float32)

    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 77


def test_models_that_cannot_generate_have_none(tmp_path: Path) -> None:
    write_companion_files(LlamaModel(LlamaConfig(**SIZES)), tmp_path, None, torch.float32)

    assert files(tmp_path) == ["config.json"]


def test_a_tokenizer_is_optional_and_reads_back(stories: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories), AutoTokenizer.from_pretrained(stories)
    without, with_one = tmp_path / "without", tmp_path / "with"
    without.mkdir()
    with_one.mkdir()

    write_companion_files(model, without, None, torch.float32)
    write_companion_files(model, with_one, tokenizer, torch.float32)

    assert files(without) == ["config.json", "generation_config.json"]
    assert files(with_one) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(with_one)(text).input_ids == tokenizer(text).input_ids


def test_chat_template_and_processor_come_along_from_the_models_folder(stories: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(stories, source)
    out.mkdir()
    (source / "chat_template.jinja").write_text(TEMPLATE)
    (source / "preprocessor_config.json").write_text('{"size": 1}')
    (source / "notes.txt").write_text("mine")

    write_companion_files(AutoModelForCausalLM.from_pretrained(source), out, None, torch.float32)

    assert files(out) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ]
    assert (out / "chat_template.jinja").read_text() == TEMPLATE


def test_the_tokenizers_chat_template_wins(stories: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(stories, source)
    out.mkdir()
    (source / "chat_template.jinja").write_text("old")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATE

    write_companion_files(AutoModelForCausalLM.from_pretrained(source), out, tokenizer, torch.float32)

    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE


def test_files_of_the_working_directory_do_not_slip_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "chat_template.jinja").write_text("of some other project")
    monkeypatch.chdir(tmp_path)

    write_companion_files(tiny_model("llama"), out, None, torch.float32)

    assert files(out) == ["config.json", "generation_config.json"]
