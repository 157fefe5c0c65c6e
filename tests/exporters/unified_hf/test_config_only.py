"""Checkpoints without hf_quant_config.json: config.json says all that is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from helpers.exporters_models import ALGORITHMS, export, json_of, quantized, tokens, with_json
from octavo.core.errors import CheckpointError
from octavo.core.evaluation.read_back import exporter_of
from octavo.exporters.unified_hf.reader import is_unified_hf

KV = {"FP8": "FP8_KV_CFG", "NVFP4": "NVFP4_KV_CFG"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(quantized("FP8_DEFAULT_CFG"), tmp_path_factory.mktemp("fp8") / "out")


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy whose JSON files may be changed."""
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def config_only(directory: Path) -> Path:
    (directory / "hf_quant_config.json").unlink()
    return directory


@pytest.mark.parametrize("preset", sorted({name: preset for preset, name in ALGORITHMS.items()}.values()))
def test_config_json_alone_is_enough(preset: str, tmp_path: Path) -> None:
    directory = export(quantized(preset), tmp_path / "out")
    both = exporter_of(directory).open(directory)

    one = exporter_of(directory).open(config_only(directory))

    assert one.layers == both.layers
    assert one.describe() == both.describe()
    assert one.activations() == both.activations()


@pytest.mark.parametrize("name", KV)
def test_config_json_alone_says_how_the_cache_is_quantized(name: str, tmp_path: Path) -> None:
    config = octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", {**octavo.preset(KV[name]), "algorithm": "max"})
    model = quantized(config)
    directory = config_only(export(model, tmp_path / "out"))

    assert exporter_of(directory).open(directory).describe()["kv_cache_quant_algo"] == name
    served = octavo.load_quantized(directory)
    with octavo.finalized(model, "unified_hf"), torch.no_grad():
        assert torch.equal(served(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config["quantization_config"].update(quant_method="awq"), False),
        (lambda config: config.pop("quantization_config"), False),
        (lambda config: config.update(quantization_config=None), False),
        (lambda config: None, True),
    ],
    ids=["another method", "none", "null", "ours"],
)
def test_checkpoints_are_recognised(
    change: Callable[[dict[str, Any]], object], expected: bool, directory: Path
) -> None:
    assert is_unified_hf(directory), "hf_quant_config.json says so"
    with_json(config_only(directory) / "config.json", change)

    assert is_unified_hf(directory) is expected


def test_config_json_without_an_algorithm(directory: Path) -> None:
    with_json(
        config_only(directory) / "config.json", lambda config: config["quantization_config"].pop("quant_algo")
    )

    with pytest.raises(
        CheckpointError, match=rf"^{directory}/config.json names no quantization_config\.quant_algo$"
    ):
        exporter_of(directory).open(directory)


@pytest.mark.parametrize("file", ["hf_quant_config.json", "config.json"])
def test_either_shape_is_read_in_either_file(file: str, directory: Path) -> None:
    nested, config = json_of(directory / "hf_quant_config.json"), json_of(directory / "config.json")
    if file == "config.json":
        change = {"quantization_config": {**nested, "quant_method": "modelopt"}}
        with_json(config_only(directory) / file, lambda data: data.update(change))
    else:
        with_json(directory / file, lambda data: (data.clear(), data.update(config["quantization_config"])))

    assert exporter_of(directory).open(directory).describe()["layers"] == {"FP8": 14}
