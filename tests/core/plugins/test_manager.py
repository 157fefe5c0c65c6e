"""The typed manager: every hook's arguments and answers, and what is said when nobody answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest
import torch
from torch import nn

import octavo
from octavo.core.errors import PluginError
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.description import ModelDescription
from octavo.core.modules import QuantAttention, QuantExperts
from octavo.core.plugins import Plugins, plugins
from octavo.core.plugins.hookspecs import DataRequest
from octavo.core.plugins.loading import load_plugins
from octavo.core.plugins.markers import hookimpl

MODEL = nn.Linear(2, 2)
DESCRIPTION = ModelDescription("mine", (), {})
REQUEST = DataRequest("text", num_samples=3)
BATCH = {"input_ids": torch.ones(1, 2, dtype=torch.int64)}
PATH = Path("checkpoint")


class Recorder:
    """A plugin that answers every hook for its own model, and writes down what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @hookimpl
    def describe_model(self, model: nn.Module) -> ModelDescription | None:
        return DESCRIPTION if model is MODEL else None

    @hookimpl
    def tiny_inputs(self, model: nn.Module) -> dict[str, Any] | None:
        return {"x": 1} if model is MODEL else None

    @hookimpl
    def attention_layers(self, model: nn.Module) -> dict[str, nn.Module] | None:
        return {"": MODEL} if model is MODEL else None

    @hookimpl
    def prepare_model(self, model: nn.Module) -> None:
        self.calls.append(("prepare", model))

    @hookimpl
    def unprepare_model(self, model: nn.Module) -> None:
        self.calls.append(("unprepare", model))

    @hookimpl
    def expert_layers(self, model: nn.Module) -> dict[str, type[QuantExperts]] | None:
        return {"experts": QuantExperts} if model is MODEL else None

    @hookimpl
    def checkpoint_layout(self, model: nn.Module, names: list[str]) -> CheckpointLayout | None:
        return CheckpointLayout({name: f"stored.{name}" for name in names}) if model is MODEL else None

    @hookimpl
    def write_companions(
        self, model: nn.Module, directory: Path, tokenizer: Any, dtype: torch.dtype
    ) -> bool | None:
        self.calls.append((directory, tokenizer, dtype))
        return True if model is MODEL else None

    @hookimpl
    def load_model(self, path: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> nn.Module | None:
        self.calls.append((path, dtype, trust_remote_code))
        return MODEL if path == PATH else None

    @hookimpl
    def build_model(self, directory: Path, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module | None:
        self.calls.append((directory, dtype, trust_remote_code))
        return MODEL if directory == PATH else None

    @hookimpl
    def load_tokenizer(self, path: Path) -> str | None:
        return "tokenizer" if path == PATH else None  # may leave out arguments that it does not need

    @hookimpl
    def text_batches(self, tokenizer: Any, request: DataRequest) -> list[dict[str, Any]] | None:
        return [BATCH] if (tokenizer, request) == ("tokenizer", REQUEST) else None


@pytest.fixture
def both() -> SimpleNamespace:
    """A manager of its own with the built-in plugins and the recorder."""
    manager, statuses = load_plugins()
    recorder = Recorder()
    manager.register(recorder)
    return SimpleNamespace(recorder=recorder, plugins=Plugins(manager, statuses))


def test_questions_about_a_model(both: SimpleNamespace) -> None:
    other = nn.Linear(1, 1)
    found: Plugins = both.plugins

    assert (found.describe_model(MODEL), found.describe_model(other)) == (DESCRIPTION, None)
    assert (found.tiny_inputs(MODEL), found.tiny_inputs(other)) == ({"x": 1}, None)
    assert (found.attention_layers(MODEL), found.attention_layers(other)) == ({"": MODEL}, {})
    assert (found.expert_layers(MODEL), found.expert_layers(other)) == ({"experts": QuantExperts}, {})
    assert (found.mixins(MODEL), found.mixins(other)) == ({"": QuantAttention, "experts": QuantExperts}, {})
    assert found.checkpoint_layout(MODEL, ["a"]).names == {"a": "stored.a"}
    assert found.checkpoint_layout(other, ["a", "b"]).names == {"a": "a", "b": "b"}


def test_calls_that_do_something(both: SimpleNamespace) -> None:
    found: Plugins = both.plugins
    found.prepare_model(MODEL)
    found.unprepare_model(MODEL)

    assert found.write_companions(MODEL, PATH, "tokenizer", torch.float16) is True
    assert found.write_companions(nn.Linear(1, 1), PATH, None, torch.float16) is False
    assert found.load_model(PATH, None, True) is MODEL
    assert found.build_model(PATH, torch.float32, False) is MODEL
    assert found.load_tokenizer(PATH, False) == "tokenizer"
    assert found.text_batches("tokenizer", REQUEST) == [BATCH]
    assert both.recorder.calls == [
        ("prepare", MODEL),
        ("unprepare", MODEL),
        (PATH, "tokenizer", torch.float16),
        (PATH, None, torch.float16),
        (PATH, None, True),
        (PATH, torch.float32, False),
    ]


def test_nobody_answers(tmp_path: Path) -> None:
    adapters, exporters = (
        "huggingface, deepspeed_zero, megatron_core",
        "unified_hf, compressed_tensors, tensorrt_llm",
    )
    names = f"{adapters}, {exporters}, foreign, cpu, triton"
    loaded = f"loaded: {names}. `octavo plugins` lists them all"
    questions = {
        f"no plugin can load {tmp_path}; {loaded}": lambda: plugins().load_model(tmp_path, None, False),
        f"no plugin can build {tmp_path}; {loaded}": lambda: plugins().build_model(
            tmp_path, torch.float32, False
        ),
        f"no plugin can load the tokenizer of {tmp_path}; {loaded}": lambda: plugins().load_tokenizer(
            tmp_path, False
        ),
        f"no plugin can read corpus.txt; {loaded}": lambda: octavo.text_batches(object(), "corpus.txt"),
    }
    for message, ask in questions.items():
        with pytest.raises(PluginError) as caught:
            ask()
        assert str(caught.value) == message


def test_exporters() -> None:
    assert plugins().exporter_names() == ["awq", "compressed_tensors", "gptq", "tensorrt_llm", "unified_hf"]
    assert plugins().exporter("unified_hf").name == "unified_hf"
    with pytest.raises(
        PluginError,
        match=r"no exporter 'unified_fh'; known: awq, compressed_tensors, gptq, tensorrt_llm, unified_hf\. "
        r"Did you mean 'unified_hf'\?",
    ):
        plugins().exporter("unified_fh")


def test_there_is_a_typed_method_for_every_hook() -> None:
    manager, _ = load_plugins()
    hooks = {name for name in vars(manager.hook) if not name.startswith("_")}
    asked_at_loading = {"plugin_info", "quantized_classes", "exporters"}

    assert hooks - asked_at_loading == {name for name in vars(Plugins) if name in hooks}
    assert isinstance(manager, pluggy.PluginManager)
