"""The four root folders are one package, and shadow nobody."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["core", "adapters", "exporters", "kernels"])
def test_the_folders_are_no_top_level_packages(name: str) -> None:
    spec = find_spec(name)
    assert spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(ROOT)


@pytest.mark.parametrize("name", ["core", "adapters", "exporters", "kernels"])
def test_the_mounts_are_the_root_folders(name: str) -> None:
    mount = Path(octavo.__file__).parent / name
    if not mount.is_symlink():
        pytest.skip("installed from a wheel, which holds the folders themselves")
    assert mount.resolve() == ROOT / name


def test_transformers_loads_a_model_class_beside_the_folders() -> None:
    script = "from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "LlamaForCausalLM"
