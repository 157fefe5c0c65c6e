"""Which plugins the environment lets in, and the trace of hook calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

import octavo
from helpers.plugins_distributions import (
    distribution,
    good_distribution,
    loaded_here,
    run_python,
)

LEFT_OUT, OFF = "left out by OCTAVO_PLUGINS", "switched off by OCTAVO_PLUGINS_OFF"
SCRIPT = """
import json, octavo
from good_layers import Model
statuses = {status.name: status.error for status in octavo.plugins().statuses}
reason = octavo.plan(Model(), "INT8_DEFAULT_CFG").tensors[0].reason
print(json.dumps([statuses, octavo.plugins().exporter_names(), reason]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good plugins, and one that would end the process if it were imported."""
    folder = good_distribution(tmp_path_factory.mktemp("environment"))
    distribution(folder, "second", {"second_plugin": ""}, second="second_plugin")
    return distribution(
        folder, "fatal", {"fatal_plugin": "raise SystemExit('imported')"}, fatal="fatal_plugin"
    )


def test_only_these_entry_points(folder: Path) -> None:
    with loaded_here(folder, OCTAVO_PLUGINS=" good , absent") as (_, statuses):
        errors = {name: status.error for name, status in statuses.items()}

    assert errors == {
        "huggingface": None,
        "deepspeed_zero": None,
        "megatron_core": None,
        "unified_hf": None,
        "compressed_tensors": None,
        "tensorrt_llm": None,
        "foreign": None,
        "cpu": None,
        "triton": None,
        "good": None,
        "second": LEFT_OUT,
        "fatal": LEFT_OUT,
    }


def test_no_entry_point_at_all(folder: Path) -> None:
    with loaded_here(folder, OCTAVO_PLUGINS="") as (_, statuses):
        errors = {name: status.error for name, status in statuses.items() if status.origin != "built-in"}

    assert errors == {"good": LEFT_OUT, "second": LEFT_OUT, "fatal": LEFT_OUT}


def test_all_but_these_built_in_ones_included(folder: Path) -> None:
    """And what is off takes no part."""
    done = run_python(folder, SCRIPT, OCTAVO_PLUGINS_OFF="fatal,good, huggingface", OCTAVO_TRACE_HOOKS="0")
    assert (done.returncode, done.stderr) == (0, "")
    statuses, exporters, reason = json.loads(done.stdout)

    assert statuses == {
        "huggingface": OFF,
        "deepspeed_zero": None,
        "megatron_core": None,
        "unified_hf": None,
        "compressed_tensors": None,
        "tensorrt_llm": None,
        "foreign": None,
        "cpu": None,
        "triton": None,
        "good": OFF,
        "second": None,
        "fatal": OFF,
    }
    assert (exporters, reason) == (
        ["awq", "compressed_tensors", "gptq", "tensorrt_llm", "unified_hf"],
        "no quantized class for good_layers:Scaled",
    )


def test_the_trace_names_hooks_and_arguments_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loaded_here(folder, OCTAVO_PLUGINS="good", OCTAVO_TRACE_HOOKS="1") as (found, _):
        loading = capsys.readouterr()
        found.describe_model(nn.Linear(2, 2))
        asking = capsys.readouterr()

    assert loading.out == asking.out == ""
    assert [
        name
        for name in ("plugin_info", "quantized_classes", "exporters")
        if f"{name} [hook]" not in loading.err
    ] == []
    assert "describe_model [hook]" in asking.err
    assert "model: Linear(in_features=2, out_features=2, bias=True)" in asking.err
    assert "finish describe_model --> None [hook]" in asking.err


def test_there_is_no_trace_unless_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loaded_here(folder, OCTAVO_PLUGINS="good", OCTAVO_TRACE_HOOKS="0") as (found, _):
        found.describe_model(nn.Linear(2, 2))

    assert capsys.readouterr().err == ""


def test_a_target_without_any_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of engines comes from exporters; here all are switched off."""
    with loaded_here(tmp_path, OCTAVO_PLUGINS_OFF="unified_hf,compressed_tensors,tensorrt_llm,foreign") as (
        found,
        _,
    ):
        monkeypatch.setattr("octavo.core.model.targets.plugins", lambda: found)
        plan = octavo.plan(nn.Linear(16, 16), "FP8_DEFAULT_CFG", target="vllm")

    assert "vllm" in " ".join([*plan.errors, *plan.warnings])


@pytest.mark.parametrize("variable", ["OCTAVO_PLUGINS", "OCTAVO_PLUGINS_OFF"])
def test_a_misspelt_name_is_not_silent(
    variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loaded_here(tmp_path, **{variable: "hugingface"}) as (_, statuses):
        said = " ".join(str(status) for status in statuses.values()) + capsys.readouterr().err

    assert "hugingface" in said
