"""Broken plugins are listed with their error, harm nobody, and leave nothing half-registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.plugins_distributions import distribution, good_distribution, run_octavo, run_python

# entry point: (what the plugin module says, its error)
BROKEN = {
    "a_import": ("import no_such_framework", "ModuleNotFoundError: No module named 'no_such_framework'"),
    "b_syntax": ("def plugin_info(:", "SyntaxError: "),
    "c_misspelt": (
        "@hookimpl\ndef attention_layer(model): return None\n@hookimpl\ndef tiny_inputs(model): return CALLED",
        "PluginValidationError: unknown hook 'attention_layer' in plugin <module 'c_misspelt_plugin'",
    ),
    "d_argument": (
        "@hookimpl\ndef describe_model(model): return CALLED\n@hookimpl\ndef tiny_inputs(modle): return CALLED",
        "PluginValidationError: Plugin 'd_argument' for hook 'tiny_inputs'\n",
    ),
    "e_claims": (
        "@hookimpl\ndef quantized_classes(): return {'e_claims:Own': 'e:Q', 'torch.nn.modules.linear:Linear': 'e:Q'}\n"
        "@hookimpl\ndef tiny_inputs(model): return CALLED",
        "ConfigError: torch.nn.modules.linear:Linear is registered already, as octavo.core.modules.linear:QuantLinear; "
        "unregister it first",
    ),
    "f_info": (
        "@hookimpl\ndef plugin_info(): return PluginInfo('f')\n"
        "@hookimpl\ndef quantized_classes(): return {'f_info:Own': 'f:Q'}",
        "TypeError: PluginInfo.__init__() missing 1 required positional argument: 'summary'",
    ),
    "g_classes": ("@hookimpl\ndef quantized_classes(): return ['g:Own']", "AttributeError: 'list' object has no"),
    "h_algorithm": (
        "@hookimpl\ndef calibration_algorithms(): return {'gptq': 'h:Own'}",
        "PluginError: another plugin has an algorithm of this name already: gptq",
    ),
    "h_early": ("1 / 0", "ZeroDivisionError: division by zero"),
    "huggingface": ("NAME = 'taken'", "ValueError: Plugin name already registered: huggingface="),
    # After `good`: whatever those before left behind would show here.
    "y_late": ("raise OSError('a file is missing')", "OSError: a file is missing"),
}  # fmt: skip
CALLED = "import pathlib\nCALLED = {}\n"
STATE = """
import json
import octavo
from torch import nn
from octavo.core.modules import registry
found = octavo.plugins()
print(json.dumps({
    "classes": sorted(k for k in registry._classes if not k.startswith(("torch.", "transformers.", "megatron."))),
    "linear": registry._classes["torch.nn.modules.linear:Linear"],
    "exporters": found.exporter_names(),
    "answers": [found.tiny_inputs(nn.Linear(2, 2)), found.describe_model(nn.Linear(2, 2))],
    "covered": octavo.plan(nn.Sequential(nn.Linear(2, 2)), "INT8_DEFAULT_CFG").coverage,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good distribution and a broken one for each kind, all found by the same process."""
    folder = good_distribution(tmp_path_factory.mktemp("broken"))
    for entry, (source, _) in BROKEN.items():
        module = f"{entry}_plugin"
        distribution(folder, f"{entry}-distribution", {module: CALLED + source}, **{entry: module})
    distribution(
        folder, "missing-distribution", {}, w_module="no_such_plugin", x_object="good_plugin:nothing"
    )
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    done = run_octavo(folder, "plugins", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return {(row["origin"], row["name"]): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("entry", BROKEN)
def test_it_is_listed_with_its_error(rows: dict[tuple[str, str], dict[str, Any]], entry: str) -> None:
    row = rows[f"{entry}-distribution", entry]

    assert row["error"].startswith(BROKEN[entry][1])
    assert (row["summary"], row["requires"]) == (None, [])


def test_modules_and_objects_that_are_not_there(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    errors = {name: row["error"] for (origin, name), row in rows.items() if origin == "missing-distribution"}

    assert errors == {
        "w_module": "ModuleNotFoundError: No module named 'no_such_plugin'",
        "x_object": "AttributeError: module 'good_plugin' has no attribute 'nothing'",
    }


def test_the_others_are_loaded(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    loaded = [key for key, row in rows.items() if row["error"] is None]

    assert loaded == [
        ("built-in", "huggingface"),
        ("built-in", "deepspeed_zero"),
        ("built-in", "megatron_core"),
        ("built-in", "unified_hf"),
        ("built-in", "compressed_tensors"),
        ("built-in", "tensorrt_llm"),
        ("built-in", "foreign"),
        ("built-in", "cpu"),
        ("built-in", "triton"),
        ("good-distribution", "good"),
    ]
    assert rows["good-distribution", "good"] == {
        "name": "good",
        "origin": "good-distribution",
        "summary": "A plugin that works",
        "requires": ["good_framework"],
        "error": None,
    }


def test_nothing_is_left_half_registered(folder: Path) -> None:
    done = run_python(folder, STATE)
    assert (done.returncode, done.stderr) == (0, "")

    assert json.loads(done.stdout) == {
        "classes": ["good_layers:Scaled"],
        "linear": "octavo.core.modules.linear:QuantLinear",
        "exporters": ["awq", "compressed_tensors", "good_format", "gptq", "tensorrt_llm", "unified_hf"],
        "answers": [None, None],
        "covered": 4 / 6,
    }
