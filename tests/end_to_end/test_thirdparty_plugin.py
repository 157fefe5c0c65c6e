"""A stranger's package, installed by pip, brings a framework to Octavo; a broken one is listed and harms nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.plugins_distributions import plugin_rows, run_octavo, run_python

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "thirdparty_plugin"
BITS = {"INT8_DEFAULT_CFG": 8, "NVFP4_DEFAULT_CFG": 4, "MXFP8_DEFAULT_CFG": 8}
SCRIPT = """
import json, sys
from pathlib import Path
import octavo
found = octavo.plugins()
report = {"imported by loading": sorted(n for n in sys.modules if n.startswith(("octavo_scaled", "octavo_broken")))}

import torch
from octavo_scaled.layers import ScaledModel
@torch.no_grad()
def run(preset):
    torch.manual_seed(0)
    model, x = ScaledModel(64), torch.randn(4, 64)
    model.left.gain.fill_(3.0)
    before = model(x)
    plan = octavo.plan(model, preset)
    octavo.quantize(model, preset, [{"x": x}], quiet=True)
    after = model(x)
    with octavo.finalized(model, "scaled"):
        folder = found.exporter("scaled").export(model, Path(OUT) / preset)
    served = octavo.load_quantized(folder)
    report = {
        "exporters": found.exporter_names(),
        "groups": plan.groups,
        "coverage": plan.coverage,
        "classes": sorted({type(layer).__name__ for layer in model.children()}),
        "changed": not torch.equal(after, before),
        "served is simulated": torch.equal(served(x), after),
        "gain": served.left.gain.item(),
        "bytes": (folder / "scaled.safetensors").stat().st_size,
    }
    octavo.unquantize(model)
    return report | {"restored": torch.equal(model(x), before), "class": type(model.left).__name__}

config = octavo.preset("INT8_WEIGHT_ONLY_CFG") | {"algorithm": {"method": "halve", "times": 2}}
model = octavo.quantize(ScaledModel(64), config, quiet=True)
report["algorithm"] = octavo.history(model)[-1].state["report"]["weights"][0]
print(json.dumps(report | {preset: run(preset) for preset in PRESETS}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two packages of tests/thirdparty_plugin, installed by pip into one folder, without network."""
    work = tmp_path_factory.mktemp("thirdparty")
    shutil.copytree(SOURCES, work / "sources")  # building leaves files beside the sources
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    packages = [str(work / "sources" / name) for name in ("scaled", "broken")]
    done = subprocess.run(
        [*command, "--target", str(work / "site"), *packages], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return work / "site"


def test_both_are_listed_and_the_broken_one_with_its_error(installed: Path) -> None:
    rows = plugin_rows(installed)

    assert rows["scaled"] == {
        "name": "scaled",
        "origin": "octavo-scaled",
        "summary": "The scaled framework: its layer, its models, its checkpoints",
        "requires": ["octavo_scaled"],
        "error": None,
    }
    assert (rows["broken"]["origin"], rows["broken"]["summary"]) == ("octavo-broken", None)
    error = rows["broken"]["error"]
    assert error.startswith("PluginValidationError: Plugin 'broken' for hook 'tiny_inputs'\n")
    assert "{'module'} are declared in the hookimpl but can not be found in the hookspec" in error
    assert rows["huggingface"]["error"] is rows["unified_hf"]["error"] is None
    table = run_octavo(installed, "plugins").stdout
    assert re.search(r"scaled +octavo-scaled +The scaled framework", table)


@pytest.fixture(scope="module")
def reports(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says of each preset, and of loading, in a process that finds the packages."""
    constants = f"OUT, PRESETS = {str(tmp_path_factory.mktemp('out'))!r}, {list(BITS)!r}\n"
    done = run_python(installed, constants + SCRIPT)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_loading_imports_plugins_and_not_what_they_bring(reports: dict[str, Any]) -> None:
    assert reports["imported by loading"] == ["octavo_broken", "octavo_scaled", "octavo_scaled.plugin"]


def test_its_algorithm_runs_by_name_with_its_options(reports: dict[str, Any]) -> None:
    assert reports["algorithm"] == {"weight": "left.weight", "algorithm": "halve", "times": 2}


@pytest.mark.parametrize(("preset", "bits"), BITS.items())
def test_its_models_are_quantized_exported_and_read_back(
    reports: dict[str, Any], preset: str, bits: int
) -> None:
    report = dict(reports[preset])

    assert report.pop("coverage") > 0.99
    payload = 3 * 64 * 64 * bits // 8
    assert payload < report.pop("bytes") < payload + 3 * 64 * 64 // 16 + 4096
    assert report == {
        "exporters": ["awq", "compressed_tensors", "gptq", "scaled", "tensorrt_llm", "unified_hf"],
        "groups": [["left", "right"]],
        "classes": ["QuantScaledLinear"],
        "changed": True,
        "served is simulated": True,
        "gain": 3.0,
        "restored": True,
        "class": "ScaledLinear",
    }


def test_the_ten_lines_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text().partition("## Your own layer in ten lines")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    body = [line for line in code.splitlines() if line and "import" not in line]
    assert len(body) == 10

    class ScaledLinear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight) * 2.0

    ScaledLinear.gain = 2.0  # type: ignore[attr-defined]
    package = ModuleType("my_package")
    package.ScaledLinear = ScaledLinear  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", package)
    model = nn.Sequential(ScaledLinear(32, 32, bias=False))
    exec(code, {"__name__": "readme"})
    try:
        octavo.quantize(model, "INT8_DEFAULT_CFG", [torch.eye(32)], quiet=True)
    finally:
        octavo.unregister(ScaledLinear)

    weight = model[0].weight_quantizer(model[0].weight)
    assert torch.equal(model(torch.eye(32)), model[0].input_quantizer(torch.eye(32)) @ weight.T * 2.0)
    assert not torch.equal(weight, model[0].weight)
