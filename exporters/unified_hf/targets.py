"""Which engine loads which scheme of this dialect (targets.yaml)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.core.formats import QuantSpec
from octavo.core.model.exporter import LayerFormat, Verdict
from octavo.exporters.unified_hf.caches import cache_name
from octavo.exporters.unified_hf.schemes import block_length, scheme_for

ENGINES = ("vllm", "sglang", "trtllm")
_NOT_STORED = Verdict("refused", "the unified HF dialect cannot store this format")


def layer_verdict(target: str, layer: LayerFormat) -> Verdict:
    """Return whether the engine `target` loads a layer of this format from a unified HF checkpoint."""
    scheme = scheme_for(layer)
    if scheme is None:
        return _NOT_STORED
    known = _table()["schemes"].get(scheme.quant_algo, {}).get("block")
    length = block_length(layer.weight)
    if known is not None and length != known:
        return Verdict("unknown", f"{scheme.quant_algo} with blocks of {length} was never tried there")
    return _verdict("schemes", scheme.quant_algo, target)


def shape_verdict(target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
    """Return whether `target` loads a weight [out, in] of this format, which it joins with others or not.

    Stacked experts [experts, out, in] have no rules of their own.
    """
    scheme = scheme_for(layer)
    rule = (
        {}
        if scheme is None or len(shape) == 3
        else _table()["shapes"].get(scheme.quant_algo, {}).get(target, {})
    )
    for key, size in (("out", shape[0]), ("in", shape[-1]), ("joined_out", shape[0] if is_fused else 0)):
        if size % rule.get(key, 1):
            dim = "in_features" if key == "in" else "out_features"
            return Verdict(rule["status"], f"{rule['evidence']}: {dim} {size} is no multiple of {rule[key]}")
    return Verdict("loads", "no rule about shapes is known")


def keeps_one_scale(target: str) -> bool:
    """Whether the engine keeps one per-tensor weight scale of layers that it joins, or might."""
    return target in _table()["one_scale_of_joined_layers"]


def cache_verdict(target: str, cache: QuantSpec) -> Verdict:
    """Return whether the engine `target` quantizes keys and values in this format."""
    name = cache_name(cache)
    return _NOT_STORED if name is None else _verdict("caches", name, target)


def mixture_verdict(target: str, layers: Collection[LayerFormat]) -> Verdict:
    """Return whether the engine `target` loads a checkpoint whose layers have all of these formats."""
    kinds = {
        (scheme.quant_algo, block_length(layer.weight))
        for layer in layers
        if (scheme := scheme_for(layer)) is not None
    }
    if len(kinds) < 2:
        return Verdict("loads", "its layers have one format")
    has_nvfp4 = any(quant_algo in ("NVFP4", "W4A16_NVFP4") for quant_algo, _ in kinds)
    return _verdict("mixtures", "with NVFP4" if has_nvfp4 else "without NVFP4", target)


def is_read_by_an_engine(quant_algo: str) -> bool:
    """Whether some serving engine loads this scheme, or might."""
    return any(_verdict("schemes", quant_algo, engine).status != "refused" for engine in ENGINES)


def _verdict(kind: str, name: str, target: str) -> Verdict:
    if target == "transformers":
        return Verdict(**_table()["transformers"])
    row = _table()[kind].get(name, {}).get(target)
    return Verdict("unknown", f"{name} was never tried there") if row is None else Verdict(**row)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("targets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
