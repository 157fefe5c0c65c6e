"""Metadata: which file is read, and what is wrong with one that cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.exporters_models import MLP, export, quantized, with_json
from octavo.core.errors import CheckpointError
from octavo.core.evaluation.read_back import exporter_of
from octavo.exporters.unified_hf.reader import is_unified_hf


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(quantized("FP8_DEFAULT_CFG"), tmp_path_factory.mktemp("fp8") / "out")


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy whose JSON files may be changed."""
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_what_inspect_shows(directory: Path) -> None:
    assert exporter_of(directory).open(directory).describe() == {
        "dialect": "unified_hf",
        "quant_algo": "FP8",
        "kv_cache_quant_algo": None,
        "layers": {"FP8": 14},
        "excluded": ["lm_head", "model.embed_tokens"],
        "num_tensors": 49,
        "dtype": "float32",
    }


def test_a_folder_with_neither_file_is_not_ours(tmp_path: Path) -> None:
    assert not is_unified_hf(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=rf"^{tmp_path} is no quantized checkpoint .*known: awq, .*, unified_hf$",
    ):
        exporter_of(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (
            {"quant_algo": "FP9"},
            r"^{directory}: unknown quant_algo 'FP9'; known: FP8, .*Did you mean 'FP8'\?$",
        ),
        ({"quant_algo": None}, "^{directory}: .* has a weight_scale and the checkpoint names no quant_algo$"),
        (
            {"quant_algo": "MIXED_PRECISION"},
            "^{directory}: .* has a weight_scale and is not in quantized_layers$",
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {f"{MLP}s": {"quant_algo": "FP8"}}},
            f"^{{directory}}: {MLP} has a weight_scale and is not in quantized_layers$",
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {MLP: {"quant_algo": "FP9"}}},
            "^{directory}: unknown quant_algo 'FP9'",
        ),
        ({"quant_algo": "W2A8_AWQ"}, "^{directory}: unknown quant_algo 'W2A8_AWQ'"),
    ],
    ids=["unknown", "null", "no layers", "a layer is missing", "a layer is unknown", "near"],
)
def test_algorithms(quantization: dict[str, Any], message: str, directory: Path) -> None:
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(quantization))

    with pytest.raises(CheckpointError, match=message.format(directory=re.escape(str(directory)))):
        exporter_of(directory).open(directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON: Expecting property name"),
        ("[1]", "must hold a JSON object, found list"),
        ('{"producer": {}}', r"names no quantization\.quant_algo"),
        ('{"quantization": {}}', r"names no quantization\.quant_algo"),
        ('{"quantization": "FP8"}', r"names no quantization\.quant_algo"),
    ],
)
def test_a_file_that_says_nothing(text: str, message: str, directory: Path) -> None:
    (directory / "hf_quant_config.json").write_text(text)

    with pytest.raises(CheckpointError, match=rf"^{directory}/hf_quant_config.json {message}"):
        exporter_of(directory).open(directory)


def test_algorithms_are_read_in_any_case(directory: Path) -> None:
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(quant_algo="fp8"))

    assert exporter_of(directory).open(directory).describe()["layers"] == {"FP8": 14}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, torch.float32),
    ],
    ids=["dtype", "torch_dtype", "neither"],
)
def test_dtypes(change: dict[str, Any], expected: torch.dtype, directory: Path) -> None:
    with_json(directory / "config.json", lambda config: config.update(change))

    assert exporter_of(directory).open(directory).dtype == expected


@pytest.mark.parametrize("dtype", ["float33", "nn", "int8"])
def test_an_unknown_dtype(dtype: str, directory: Path) -> None:
    with_json(directory / "config.json", lambda config: config.update(dtype=dtype))

    message = rf"^{directory}/config.json has dtype '{dtype}', which is no float dtype of torch$"
    with pytest.raises(CheckpointError, match=message):
        exporter_of(directory).open(directory)
