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
    return (
        _NOT_STORED
        if scheme is None
        else scheme_verdict(target, scheme.quant_algo, block_length(layer.weight))
    )


def scheme_verdict(target: str, quant_algo: str, length: int | None) -> Verdict:
    """Return whether the engine `target` loads the scheme `quant_algo` with blocks of `length`."""
    known = _table()["schemes"].get(quant_algo, {}).get("block")
    if known is not None and length != known:
        return Verdict("unknown", f"{quant_algo} with blocks of {length} was never tried there")
    return _verdict("schemes", quant_algo, target)


def shape_verdict(target: str, layer: LayerFormat, shape: Sequence[int], is_fused: bool) -> Verdict:
    """Return whether `target` loads a weight [out, in], or experts [experts, out, in], of this format.

    `is_fused` says that it joins the weight with others.
    """
    scheme = scheme_for(layer)
    return _NOT_STORED if scheme is None else scheme_shape_verdict(target, scheme.quant_algo, shape, is_fused)


def scheme_shape_verdict(target: str, quant_algo: str, shape: Sequence[int], is_fused: bool) -> Verdict:
    """Return the same as `shape_verdict`, of the scheme `quant_algo`."""
    if len(shape) == 3:
        row = _table()["experts"].get(quant_algo, {}).get(target)
        return Verdict("loads", "no rule about experts is known") if row is None else Verdict(**row)
    rule = _table()["shapes"].get(quant_algo, {}).get(target, {})
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
    return _NOT_STORED if name is None else cache_name_verdict(target, name)


def cache_name_verdict(target: str, name: str) -> Verdict:
    """Return the same as `cache_verdict`, of the format that metadata call `name`."""
    return _verdict("caches", name, target)


def mixture_verdict(target: str, layers: Collection[LayerFormat]) -> Verdict:
    """Return whether the engine `target` loads a checkpoint whose layers have all of these formats."""
    kinds = {
        (scheme.quant_algo, block_length(layer.weight))
        for layer in layers
        if (scheme := scheme_for(layer)) is not None
    }
    if len(kinds) < 2:
        return Verdict("loads", "its layers have one format")
    return scheme_mixture_verdict(target, {quant_algo for quant_algo, _ in kinds})


def scheme_mixture_verdict(target: str, quant_algos: Collection[str]) -> Verdict:
    """Return whether the engine `target` loads a MIXED_PRECISION checkpoint of these schemes."""
    has_nvfp4 = any(quant_algo in ("NVFP4", "W4A16_NVFP4") for quant_algo in quant_algos)
    return _verdict("mixtures", "with NVFP4" if has_nvfp4 else "without NVFP4", target)


def is_read_by_an_engine(quant_algo: str) -> bool:
    """Whether some serving engine loads this scheme, or might."""
    return any(_verdict("schemes", quant_algo, engine).status != "refused" for engine in ENGINES)


def transformers_verdict() -> Verdict:
    """Return what transformers makes of this dialect, whatever the scheme."""
    return Verdict(**_table()["transformers"])


def _verdict(kind: str, name: str, target: str) -> Verdict:
    if target == "transformers":
        return transformers_verdict()
    row = _table()[kind].get(name, {}).get(target)
    return Verdict("unknown", f"{name} was never tried there") if row is None else Verdict(**row)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("targets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]
