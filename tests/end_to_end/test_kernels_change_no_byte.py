"""With kernels and without, every preset writes the same files: calibrated, solved, rounded and packed alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import octavo
from helpers.adapters_models import tiny_model
from helpers.tiny import tiny_llama, token_batches
from octavo.core.config.presets import kv_preset_names
from octavo.core.ops.kernels import using

OF_EXPERTS = "NVFP4_EXPERTS_ONLY_CFG"
NO_PLACE = "OCTAVO_INT3_CFG"  # only saved: no checkpoint of this dialect holds three bits
# What training decides takes minutes; learned rounding runs the same operators, in the other presets' formats.
SLOW = {NO_PLACE: "max"}
TELL_TIMES = ("report.json", "report.html", "octavo_modes.json")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of products are the same in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hashes(name: str, directory: Path) -> dict[str, str]:
    """Quantize and export a small model; return SHA-256 of each file that tells no times."""
    config = (
        octavo.merge_configs("FP8_DEFAULT_CFG", name) if name in kv_preset_names() else octavo.preset(name)
    )
    if name in SLOW:
        config = {**config, "algorithm": SLOW[name]}
    model = (
        tiny_model("qwen3_moe", **EXPERTS)
        if name == OF_EXPERTS
        else tiny_llama(torch.bfloat16, num_hidden_layers=1)
    )
    octavo.quantize(model, config, token_batches(), quiet=True)
    if name == NO_PLACE:
        octavo.save(model, directory)
    else:
        octavo.export_hf_checkpoint(model, export_dir=directory, quiet=True)
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in TELL_TIMES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("name", octavo.preset_names())
def test_of_every_preset(name: str, tmp_path: Path) -> None:
    found = {}
    for kind, kernels in {"default": nullcontext(), "reference": using("reference")}.items():
        with kernels:
            found[kind] = hashes(name, tmp_path / kind)

    assert any(name.endswith(".safetensors") for name in found["default"])
    assert found["default"] == found["reference"]
