"""Models that bring their own code: it runs only when asked for, and goes with the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octavo
from helpers.adapters_remote_code import CODE, CONFIG, write_model_with_code
from octavo.core.errors import OctavoError
from octavo.core.plugins import plugins

IDS = torch.arange(3, 15)[None]
# Loads the export in a process that has never seen the model.
SCRIPT = """
import json, sys
import torch
from transformers import AutoConfig
import octavo

config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
model = octavo.load_quantized(sys.argv[1], trust_remote_code=True)
logits = model(torch.arange(3, 15)[None]).logits
print(json.dumps([type(config).__name__, type(model).__name__, logits.tolist()]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, str]:
    """(checkpoint, logits of the finalized model, its config as JSON) of a quantized model with code."""
    folder = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        patch.syspath_prepend(str(folder / "modules"))
        model = plugins().load_model(write_model_with_code(folder / "model"), None, trust_remote_code=True)
        config = model.config.to_json_string()
        octavo.quantize(model, "FP8_DEFAULT_CFG", [IDS], quiet=True)
        octavo.export_hf_checkpoint(model, export_dir=folder / "out", quiet=True)
        assert model.config.to_json_string() == config, "exporting leaves the config alone"
        with octavo.finalized(model, "unified_hf"), torch.no_grad():
            return folder / "out", model(IDS).logits, config


def test_code_goes_with_the_checkpoint(exported: tuple[Path, Tensor, str]) -> None:
    directory, _, _ = exported
    config = json.loads((directory / "config.json").read_text())

    assert {name: (directory / name).read_text() for name in CODE} == CODE
    assert config["auto_map"] == CONFIG["auto_map"]
    assert config["architectures"] == CONFIG["architectures"]


def test_another_process_loads_the_export(exported: tuple[Path, Tensor, str], tmp_path: Path) -> None:
    directory, expected, _ = exported
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    config_class, model_class, logits = json.loads(done.stdout)
    assert (config_class, model_class) == ("PocketConfig", "PocketForCausalLM")
    assert torch.equal(torch.tensor(logits), expected)


def test_code_is_not_run_unless_asked_for(exported: tuple[Path, Tensor, str], tmp_path: Path) -> None:
    directory, _, _ = exported

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        octavo.load_quantized(directory)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        plugins().load_model(write_model_with_code(tmp_path / "model"), None, trust_remote_code=False)


def test_refusing_to_run_code_is_an_octavo_error(exported: tuple[Path, Tensor, str]) -> None:
    directory, _, _ = exported

    with pytest.raises(OctavoError, match=f"{directory}.*trust_remote_code"):
        octavo.load_quantized(directory)
