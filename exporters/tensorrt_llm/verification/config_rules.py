"""config.json of a TensorRT-LLM checkpoint: the fields, keys and numbers that the engine builder insists on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.verification.finding import Finding, error, warning

_EXPORT = "Export again with target='trtllm'."


def check_config(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with a config.json, whatever the tensors are."""
    table = reader_table()
    needed = [*table["required"], *table["required_of"].get(config.get("architecture"), ())]
    for field in needed:
        if config.get(field) is None:
            yield error(
                f"config.json: {field}", "none", "a value: the model is not built without it", _EXPORT
            )
    for field, known in table["values"].items():
        if config.get(field) is not None and config[field] not in known:
            yield error(f"config.json: {field}", repr(config[field]), f"one of {', '.join(known)}", _EXPORT)
    for part in ("mapping", "quantization"):
        unknown = sorted(set(config.get(part) or {}) - set(table[part]))
        if unknown:
            yield error(
                f"config.json: {part}", f"keys {unknown}", f"only {', '.join(table[part])}", "Remove them."
            )
    yield from _check_mapping(config)
    yield from _check_quantization(config.get("quantization") or {})


def _check_mapping(config: Mapping[str, Any]) -> Iterator[Finding]:
    mapping = config.get("mapping") or {}
    world, tp, pp = (mapping.get(key, 1) for key in ("world_size", "tp_size", "pp_size"))
    ranks = tp * pp * mapping.get("cp_size", 1)
    if world != ranks:
        yield error(
            "config.json: mapping.world_size", str(world), f"tp_size·pp_size·cp_size = {ranks}", _EXPORT
        )
    experts = _or(mapping.get("moe_tp_size"), tp) * _or(mapping.get("moe_ep_size"), 1)
    if experts != tp:
        yield error(
            "config.json: mapping", f"moe_tp_size·moe_ep_size = {experts}", f"tp_size = {tp}", _EXPORT
        )
    layers, heads = config.get("num_hidden_layers") or 0, config.get("num_attention_heads") or 0
    kv_heads = config.get("num_key_value_heads") or heads
    if layers % pp:
        needed = f"a multiple of pp_size {pp}: the remaining layers would be lost"
        yield error("config.json: num_hidden_layers", str(layers), needed, "Use another layout.")
    if heads % tp:
        yield error(
            "config.json: num_attention_heads",
            str(heads),
            f"a multiple of tp_size {tp}",
            "Use another layout.",
        )
    if kv_heads % tp and tp % kv_heads:
        needed = f"a multiple or a divisor of tp_size {tp}"
        yield error("config.json: num_key_value_heads", str(kv_heads), needed, "Use another layout.")


def _or(size: int | None, default: int) -> int:
    return default if size is None or size < 0 else size


def _check_quantization(quantization: Mapping[str, Any]) -> Iterator[Finding]:
    algo, cache = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    known = [*(name for name in reader_table()["linears"] if name != "plain"), "MIXED_PRECISION"]
    if algo is not None and algo not in known:
        place = "config.json: quantization.quant_algo"
        yield error(place, repr(algo), f"one of {', '.join(known)}", "Quantize in another format.")
    if cache is not None and cache not in reader_table()["caches"]:
        known = reader_table()["caches"]
        place = "config.json: quantization.kv_cache_quant_algo"
        yield error(place, repr(cache), f"one of {', '.join(known)}", "Quantize in another format.")
    if algo in ("W4A16_AWQ", "W4A8_AWQ") and not quantization.get("pre_quant_scale"):
        place = "config.json: quantization.pre_quant_scale"
        yield warning(place, "false", "true: the reader then takes prequant_scaling_factor", _EXPORT)


@lru_cache(maxsize=1)
def reader_table() -> dict[str, Any]:
    """Return reader.yaml."""
    import yaml

    text = Path(__file__).with_name("reader.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
