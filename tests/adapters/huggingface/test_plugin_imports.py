"""The adapter's hooks import no framework for models and tokenizers that are not its own."""

from __future__ import annotations

import json
import subprocess
import sys

FRAMEWORKS = "transformers", "datasets", "accelerate", "tokenizers"
SCRIPT = """
import sys
from pathlib import Path

import torch
from octavo.adapters.huggingface import plugin
from octavo.core.plugins.hookspecs import DataRequest

def imported():
    return [name for name in {frameworks} if name in sys.modules]

{calls}
"""
CALLS = {
    "importing": "",
    "every hook, for a plain model": """
model = torch.nn.Linear(2, 2)
plugin.plugin_info()
for hook in (plugin.describe_model, plugin.tiny_inputs, plugin.attention_layers, plugin.left_out_attention):
    assert hook(model) is None
plugin.prepare_model(model)
plugin.unprepare_model(model)
assert plugin.checkpoint_layout(model, ["weight"]) is None
assert plugin.write_companions(model, Path("."), None, torch.float32) is None
assert plugin.text_batches(object(), DataRequest("x")) is None
""",
    "loading from a folder without a config": """
empty = Path("/nonexistent")
assert plugin.load_model(empty, None, False, False) is None
assert plugin.build_model(empty, torch.float32, False) is None
assert plugin.load_tokenizer(empty, False) is None
""",
}


def test_no_framework_is_imported() -> None:
    """In a process of its own, one call after the other, since this one has imported all of them."""
    parts = [f"{call}\nfound[{name!r}] = imported()\n" for name, call in CALLS.items()]
    calls = "\n".join(["import json", "found = {}", *parts, "print(json.dumps(found))"])
    script = SCRIPT.format(calls=calls, frameworks=FRAMEWORKS)

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [] for name in CALLS}
