"""Metadata that would be misunderstood: each is a CheckpointError that names the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import octavo
from helpers.exporters_models import MLP, export, quantized, with_json
from octavo.core.errors import CheckpointError


@pytest.mark.parametrize("name", ["INT8", "FP9"])
def test_an_unknown_cache_format(name: str, tmp_path: Path) -> None:
    config = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")
    directory = export(quantized(config), tmp_path / "out")
    with_json(
        directory / "hf_quant_config.json", lambda data: data["quantization"].update(kv_cache_quant_algo=name)
    )

    with pytest.raises(CheckpointError, match=f"kv_cache_quant_algo.*{name}"):
        octavo.load_quantized(directory)


@pytest.mark.parametrize(
    "scheme",
    [{"num_bits": 8, "type": "int"}, {"num_bits": 6, "type": "float"}, {"type": "float"}, "FP8"],
    ids=str,
)
def test_an_unknown_cache_scheme(scheme: object, tmp_path: Path) -> None:
    directory = export(quantized(octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")), tmp_path / "out")
    (directory / "hf_quant_config.json").unlink()
    change = {"kv_cache_scheme": scheme}
    with_json(directory / "config.json", lambda data: data["quantization_config"].update(change))

    with pytest.raises(
        CheckpointError, match=f"kv_cache_scheme must be a float of 4 or 8 bits, found {scheme!r}"
    ):
        octavo.load_quantized(directory)


@pytest.mark.parametrize(
    ("field", "value"),
    [("group_size", "16"), ("exclude_modules", "lm_head"), ("quantized_layers", ["lm_head"])],
)
def test_a_field_of_another_type(field: str, value: object, tmp_path: Path) -> None:
    directory = export(quantized("NVFP4_DEFAULT_CFG"), tmp_path / "out")
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update({field: value}))

    with pytest.raises(CheckpointError, match=re.escape(f"hf_quant_config.json: {field} must be of type")):
        octavo.load_quantized(directory)


def test_a_cache_format_in_lower_case(tmp_path: Path) -> None:
    config = octavo.merge_configs("INT8_WEIGHT_ONLY_CFG", {**octavo.NVFP4_KV_CFG, "algorithm": "max"})
    directory = export(quantized(config), tmp_path / "out")
    with_json(
        directory / "hf_quant_config.json",
        lambda data: data["quantization"].update(kv_cache_quant_algo="nvfp4"),
    )

    served = octavo.load_quantized(directory)

    assert served.get_submodule("model.layers.0.self_attn.k_bmm_quantizer").spec.element == "e2m1"


@pytest.mark.parametrize("layer", [{}, {"group_size": 16}, {"quant_algo": 8}, "FP8"])
def test_a_layer_without_an_algorithm(layer: object, tmp_path: Path) -> None:
    directory = export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out")
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {MLP: layer}}
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(mixed))

    with pytest.raises(CheckpointError, match=MLP):
        octavo.load_quantized(directory)


def test_an_algorithm_that_is_no_name(tmp_path: Path) -> None:
    directory = export(quantized("FP8_DEFAULT_CFG"), tmp_path / "out")
    with_json(directory / "hf_quant_config.json", lambda data: data["quantization"].update(quant_algo=8))

    with pytest.raises(CheckpointError, match=r"quant_algo.*8"):
        octavo.load_quantized(directory)
