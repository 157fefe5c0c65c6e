"""A third party's distribution brings a layer class, an exporter and hooks, and all of them work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.plugins_distributions import good_distribution, run_python

SCRIPT = """
import json, sys
import octavo
found = octavo.plugins()
report = {"imported by loading": sorted(name for name in sys.modules if name.startswith("good"))}

import torch
from good_layers import Model
model, x = Model(), torch.ones(2, 8)
before = model(x)
plan = octavo.plan(model, "INT8_DEFAULT_CFG", target="trtllm")
octavo.quantize(model, "INT8_DEFAULT_CFG", [{"x": x}], quiet=True)
report |= {
    "exporters": found.exporter_names(),
    "exporter": found.exporter("good_format").name,
    "classes": [type(layer).__name__ for layer in model.children()],
    "groups": plan.groups,
    "covered": [tensor.name for tensor in plan.tensors if tensor.weight],
    "warnings": plan.warnings,
    "changed": not torch.equal(model(x), before),
    "amax": model.left.input_quantizer.amax.item(),
}
octavo.unquantize(model)
report |= {"restored": torch.equal(model(x), before), "class": type(model.left).__name__}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = run_python(good_distribution(tmp_path_factory.mktemp("good")), SCRIPT)
    assert (done.returncode, done.stderr) == (0, "")
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_its_layers_become_its_quantized_class_and_come_back(report: dict[str, Any]) -> None:
    assert report["classes"] == ["QuantScaled", "QuantScaled", "QuantLinear"]
    assert report["covered"] == ["left.weight", "right.weight", "out.weight"]
    assert report["changed"] is True
    assert report["amax"] == 1.0
    assert (report["restored"], report["class"]) == (True, "Scaled")


def test_its_hooks_are_asked(report: dict[str, Any]) -> None:
    assert report["groups"] == [["left", "right"]]


def test_its_exporter_is_found_and_may_say_more_of_an_engine_than_ours(report: dict[str, Any]) -> None:
    assert report["exporters"] == [
        "awq",
        "compressed_tensors",
        "good_format",
        "gptq",
        "tensorrt_llm",
        "unified_hf",
    ]
    assert report["exporter"] == "good_format"
    assert report["warnings"] == [], "ours does not know whether trtllm loads INT8"


def test_only_the_plugin_itself_is_imported_by_loading(report: dict[str, Any]) -> None:
    """Layers, quantized class and exporter are named by strings, and imported where they are used."""
    assert report["imported by loading"] == ["good_plugin"]
