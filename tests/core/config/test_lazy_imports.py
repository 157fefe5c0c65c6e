"""What importing costs: packages are imported when they are used, and so are parts of Octavo that few calls need."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys
import octavo
octavo.quantize
quantize = sorted(sys.modules)
octavo.plan, octavo.Plan, octavo.load_recipe, octavo.with_block_size
before = sorted(sys.modules)
octavo.FP8_DEFAULT_CFG
print(json.dumps([quantize, before, sorted(sys.modules)]))
"""


def test_the_main_verbs_import_neither_schemas_nor_frameworks() -> None:
    """In a process of its own, since this one has imported all of them."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    quantize, verbs, with_preset = map(set, json.loads(done.stdout))
    heavy = {
        "pydantic",
        "yaml",
        "rich",
        "typer",
        "transformers",
        "datasets",
        "accelerate",
        "triton",
        "safetensors",
    }
    plugins = {"octavo.adapters.huggingface.plugin", "octavo.exporters.unified_hf.plugin"}

    used_later = {
        "octavo.core.calibration.mse",
        "octavo.core.calibration.finalize",
        "octavo.core.modes.storage",
    }

    assert quantize & {"pluggy", *used_later} == set()
    assert {"torch", "octavo.core.calibration.quantize", "octavo.core.plan.build"} <= verbs
    assert verbs & {*heavy, *plugins} == set()
    assert with_preset & heavy == {"yaml"}
