"""The two JSON descriptions of a checkpoint: hf_quant_config.json and config.json's quantization_config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from octavo.core.formats import QuantSpec
from octavo.exporters.unified_hf.caches import NVFP4_AFFINE, cache_name
from octavo.exporters.unified_hf.schemes import Scheme, block_length

# Readers test the producer's name and version, so they name the dialect; `written_by` names the writer.
DIALECT_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
MIXED = "MIXED_PRECISION"

LayerSchemes = Mapping[str, tuple[Scheme, QuantSpec]]


def nested_metadata(
    layers: LayerSchemes, kv: QuantSpec | None, exclude: Sequence[str], has_bias: bool = False
) -> dict[str, Any]:
    """Return hf_quant_config.json.

    Args:
        layers: Scheme and stored weight format of each quantized layer, by checkpoint name.
        kv: Format of keys and values in the cache, or None.
        exclude: Layers left out, by checkpoint name.
        has_bias: Whether biases are subtracted from keys and values.
    """
    quantization: dict[str, Any] = {
        "quant_algo": _quant_algo(layers),
        "kv_cache_quant_algo": None if kv is None else cache_name(kv, has_bias),
    }
    if quantization["quant_algo"] == MIXED:
        quantization["quantized_layers"] = _quantized_layers(layers)
    elif layers:
        scheme, weight = _first(layers)
        if scheme.group_size:
            quantization["group_size"] = block_length(weight)
        quantization.update(scheme.extra)
    quantization["exclude_modules"] = sorted(exclude)
    return {"producer": _producer(), "quantization": quantization}


def flat_metadata(
    layers: LayerSchemes, kv: QuantSpec | None, exclude: Sequence[str], has_bias: bool = False
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json; arguments as in `nested_metadata`."""
    quant_algo = _quant_algo(layers)
    flat: dict[str, Any] = {}
    if layers and quant_algo != MIXED and _first(layers)[0].config_groups:
        scheme, weight = _first(layers)
        group = {} if scheme.inputs is None else {"input_activations": _group_format(scheme.inputs)}
        flat["config_groups"] = {
            "group_0": {**group, "weights": _group_format(weight), **scheme.extra, "targets": ["Linear"]}
        }
    flat |= {"ignore": sorted(exclude), "quant_algo": quant_algo}
    if quant_algo == MIXED:
        flat["quantized_layers"] = _quantized_layers(layers)
    if kv is not None:
        name = cache_name(kv, has_bias)
        flat["kv_cache_scheme"] = name if name == NVFP4_AFFINE else _group_format(kv)
    return {**flat, "producer": _producer(), "quant_method": "modelopt"}


def _first(layers: LayerSchemes) -> tuple[Scheme, QuantSpec]:
    return next(iter(layers.values()))


def _quant_algo(layers: LayerSchemes) -> str | None:
    """Return the one format of all layers, MIXED for several, or None when only the KV cache is quantized."""
    kinds = {(scheme.quant_algo, block_length(weight)) for scheme, weight in layers.values()}
    if len(kinds) > 1:
        return MIXED
    return _first(layers)[0].quant_algo if layers else None


def _quantized_layers(layers: LayerSchemes) -> dict[str, dict[str, Any]]:
    described = {}
    for name, (scheme, weight) in sorted(layers.items()):
        length = block_length(weight)
        described[name] = {"quant_algo": scheme.quant_algo, **({"group_size": length} if length else {})}
    return described


def _group_format(spec: QuantSpec) -> dict[str, Any]:
    length = block_length(spec)
    described = {"dynamic": False, "num_bits": spec.element_type.bits, "type": "float"}
    return {**described, "group_size": length} if length else described


def _producer() -> dict[str, str]:
    return {**DIALECT_PRODUCER, "written_by": f"octavo {version('octavo')}"}
