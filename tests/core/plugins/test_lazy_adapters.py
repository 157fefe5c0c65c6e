"""Adapters and exporters import no framework when they are loaded, and are there without one."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.plugins_distributions import plugin_rows, run_python
from octavo._builtin_plugins import BUILTIN_PLUGINS

FRAMEWORKS = {
    "transformers",
    "datasets",
    "accelerate",
    "deepspeed",
    "megatron",
    "nemo",
    "diffusers",
    "triton",
    "peft",
}
SCRIPT = """
import json, sys, torch, octavo
octavo.plugins()
loaded = list(sys.modules)
octavo.quantize(torch.nn.Sequential(torch.nn.Linear(4, 4)), "INT8_WEIGHT_ONLY_CFG", quiet=True)
print(json.dumps([loaded, list(sys.modules)]))
"""


def test_no_framework_is_imported_by_loading_nor_for_a_model_of_no_framework(tmp_path: Path) -> None:
    done = run_python(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr
    loaded, used = map(set, json.loads(done.stdout))

    assert set(BUILTIN_PLUGINS) <= loaded
    assert loaded & {*FRAMEWORKS, "pydantic", "yaml", "rich", "typer"} == set()
    assert used & FRAMEWORKS == set()


def test_they_are_listed_where_their_framework_cannot_be_imported(tmp_path: Path) -> None:
    for name in FRAMEWORKS:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    rows = plugin_rows(tmp_path)

    assert {name: row["error"] for name, row in rows.items()} == {
        "huggingface": None,
        "deepspeed_zero": None,
        "megatron_core": None,
        "unified_hf": None,
        "compressed_tensors": None,
        "tensorrt_llm": None,
        "foreign": None,
        "cpu": None,
        "triton": None,
    }
    assert rows["huggingface"]["requires"] == ["transformers"]
