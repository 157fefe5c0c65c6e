"""Exporting a model with packed weights gives the files that the uncompressed model gives, in every dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.adapters_models import tiny_model, tokens
from helpers.compressed_models import FORMATS, quantized_llama
from helpers.exporters_models import digests, json_of

CASES = {
    "unified_hf": [name for name in FORMATS if name not in ("int3", "int8 tensor")],
    "compressed_tensors": [
        "int8",
        "int4",
        "int3",
        "fp8",
        "fp8 channel",
        "fp8 square",
        "nvfp4",
        "mxfp4",
        "mxfp8",
    ],
    "tensorrt_llm": [
        "int8",
        "int4 then fp8",
        "smoothed int8",
        "smoothed int4",
        "fp8",
        "nvfp4",
        "nvfp4 then fp8",
    ],
}


@pytest.mark.parametrize(
    ("dialect", "name"), [(dialect, name) for dialect, names in CASES.items() for name in names]
)
def test_every_format_in_every_dialect(dialect: str, name: str, tmp_path: Path) -> None:
    check(quantized_llama(FORMATS[name]), tmp_path, dialect)


@pytest.mark.parametrize(
    ("target", "name"), [("vllm", "int4"), ("vllm", "fp8"), ("sglang", "nvfp4"), ("trtllm", "fp8")]
)
def test_for_an_engine(target: str, name: str, tmp_path: Path) -> None:
    """vLLM loads INT4 as compressed-tensors, which compress finds out like the exporter."""
    check(quantized_llama(FORMATS[name]), tmp_path, "unified_hf", target)


@pytest.mark.parametrize("config", ["FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG"])
@pytest.mark.parametrize("model_type", ["mixtral", "llama4_text", "gpt2"])
def test_stacked_and_transposed_weights(model_type: str, config: str, tmp_path: Path) -> None:
    """Experts that files take apart (Mixtral) or hold in one tensor (Llama 4), and Conv1D (GPT-2)."""
    sizes = {} if model_type == "gpt2" else {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = tiny_model(model_type, **sizes)
    octavo.quantize(model, config, [tokens()], quiet=True)
    check(model, tmp_path, "unified_hf")


def test_one_part_of_a_model(tmp_path: Path) -> None:
    check(quantized_llama("INT4_AWQ_CFG"), tmp_path, "unified_hf", patterns="*.mlp.*")


def test_a_model_without_any_float_parameter(tmp_path: Path) -> None:
    """The dtype in config.json is that of the dense weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)).half()
    octavo.quantize(model, "FP8_DEFAULT_CFG", [torch.randn(4, 64).half()], quiet=True)
    check(model, tmp_path, "unified_hf")


def check(model: nn.Module, folder: Path, dialect: str, target: str | None = None, **options: Any) -> None:
    export(model, dialect, folder / "dense", target)
    octavo.compress(model, dialect=dialect, target=target, quiet=True, **options)
    export(model, dialect, folder / "packed", target)
    found, expected = digests(folder / "packed"), digests(folder / "dense")
    said = {name: json_of(folder / name / "report.json").pop("warnings") for name in ("packed", "dense")}
    if said["packed"] != said["dense"]:  # compress has said what is off from then on
        assert [warning for warning in said["dense"] if "no place for" not in warning] == said["packed"]
        found, expected = ({k: v for k, v in d.items() if "report" not in k} for d in (found, expected))
    assert found == expected
    assert len(expected) >= 3


def export(model: nn.Module, dialect: str, folder: Path, target: str | None) -> None:
    octavo.plugins().exporter(dialect).export(model, folder, target=target, quiet=True)
