"""The two JSON descriptions of a checkpoint, for each scheme and for caches."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from octavo.core.formats import QuantSpec
from octavo.exporters.unified_hf.caches import FP8_KV, NVFP4_KV
from octavo.exporters.unified_hf.metadata import LayerSchemes, flat_metadata, nested_metadata
from octavo.exporters.unified_hf.schemes import schemes

PRODUCER = {"name": "modelopt", "version": "0.47.0", "written_by": f"octavo {version('octavo')}"}
EXCLUDE = ["model.embed_tokens", "lm_head"]
FP8 = {"dynamic": False, "num_bits": 8, "type": "float"}
FP4_16 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
FP4_32 = {**FP4_16, "group_size": 32}
# Fields of hf_quant_config.json, and groups of config.json, beside those that all schemes have.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "FP8": ({}, {"input_activations": FP8, "weights": FP8, "targets": ["Linear"]}),
    "FP8_PER_CHANNEL_PER_TOKEN": ({}, None),
    "fp8_pb_wo": ({}, None),
    "W8A8_SQ_PER_CHANNEL": ({}, None),
    "W8A16": ({}, None),
    "W4A16_AWQ": ({"group_size": 32, "has_zero_point": False, "pre_quant_scale": True}, None),
    "W4A8_AWQ": ({"group_size": 32, "has_zero_point": False, "pre_quant_scale": True}, None),
    "NVFP4_AWQ": ({"group_size": 16, "has_zero_point": False, "pre_quant_scale": True}, None),
    "NVFP4_SVD": (
        {"group_size": 16, "has_zero_point": False, "pre_quant_scale": True},
        {
            "input_activations": FP4_16,
            "weights": FP4_16,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "targets": ["Linear"],
        },
    ),
    "NVFP4": ({"group_size": 16}, {"input_activations": FP4_16, "weights": FP4_16, "targets": ["Linear"]}),
    "W4A16_NVFP4": ({"group_size": 32}, {"weights": FP4_32, "targets": ["Linear"]}),
    "W4A8_NVFP4_FP8": ({"group_size": 32}, None),
    "MXFP8": ({"group_size": 32}, None),
    "mxfp4": ({}, None),
    "W4A8_MXFP4_FP8": ({"group_size": 32}, None),
    "W4A16_MXFP4": ({"group_size": 32}, None),
    "MXFP6": ({"group_size": 32}, None),
    "MXINT8": ({"group_size": 32}, None),
}
CACHES = [
    (None, None, None),
    (FP8_KV, "FP8", FP8),
    (NVFP4_KV, "NVFP4", FP4_16),
]


def layers_of(*quant_algos: str) -> LayerSchemes:
    """Return one layer of each scheme, with blocks of 32 where the length is open."""
    found = {scheme.quant_algo: scheme for scheme in schemes()}
    return {f"m.{i}": (found[name], found[name].weight_with_block(32)) for i, name in enumerate(quant_algos)}


@pytest.mark.parametrize("quant_algo", FIELDS)
def test_one_scheme(quant_algo: str) -> None:
    layers = layers_of(quant_algo, quant_algo)
    extra, group = FIELDS[quant_algo]

    assert nested_metadata(layers, None, EXCLUDE) == {
        "producer": PRODUCER,
        "quantization": {
            "quant_algo": quant_algo,
            "kv_cache_quant_algo": None,
            **extra,
            "exclude_modules": ["lm_head", "model.embed_tokens"],
        },
    }
    assert flat_metadata(layers, None, EXCLUDE) == {
        **({} if group is None else {"config_groups": {"group_0": group}}),
        "ignore": ["lm_head", "model.embed_tokens"],
        "quant_algo": quant_algo,
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


def test_every_scheme_is_described() -> None:
    assert FIELDS.keys() == {scheme.quant_algo for scheme in schemes()}


@pytest.mark.parametrize(("spec", "name", "scheme"), CACHES, ids=["none", "FP8", "NVFP4"])
def test_caches(spec: QuantSpec | None, name: str | None, scheme: dict[str, Any] | None) -> None:
    nested = nested_metadata(layers_of("FP8"), spec, [])
    flat = flat_metadata(layers_of("FP8"), spec, [])

    assert nested["quantization"]["kv_cache_quant_algo"] == name
    assert flat.get("kv_cache_scheme") == scheme


def test_mixed_schemes_are_listed_by_layer() -> None:
    listed = {"m.0": {"quant_algo": "FP8"}, "m.1": {"quant_algo": "NVFP4", "group_size": 16}}
    nested = nested_metadata(layers_of("FP8", "NVFP4"), FP8_KV, EXCLUDE)
    flat = flat_metadata(layers_of("FP8", "NVFP4"), FP8_KV, EXCLUDE)

    assert nested["quantization"] == {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": "FP8",
        "quantized_layers": listed,
        "exclude_modules": ["lm_head", "model.embed_tokens"],
    }
    assert flat == {
        "ignore": ["lm_head", "model.embed_tokens"],
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": listed,
        "kv_cache_scheme": FP8,
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


def test_one_scheme_with_two_block_lengths_is_mixed() -> None:
    (scheme,) = (scheme for scheme in schemes() if scheme.quant_algo == "W4A16_AWQ")
    layers = {f"m.{length}": (scheme, scheme.weight_with_block(length)) for length in (32, 128)}

    quantization = nested_metadata(layers, None, [])["quantization"]

    assert quantization["quant_algo"] == "MIXED_PRECISION"
    assert [layer["group_size"] for layer in quantization["quantized_layers"].values()] == [128, 32]
