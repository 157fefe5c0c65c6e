"""What config.json and quant_cfg.json say of a checkpoint's quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octavo.core.errors import ExportError, listed

MIXED = "MIXED_PRECISION"
# The reader's own list, which a list in config.json replaces; without these it expects codes of what has none.
READER_EXCLUDES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
LayerMetadata = Mapping[str, Mapping[str, Any] | None]


def quantization_metadata(
    layers: LayerMetadata, cache: str | None, shares_head: bool, for_reader: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return (`quantization` of config.json, quant_cfg.json or None).

    Args:
        layers: What is said of each linear layer of one stage, by its name there; None of those that are plain.
        cache: Name of the format of keys and values, or None.
        shares_head: Whether the head is the token embedding.
        for_reader: Name every plain layer, and what the reader leaves out by itself, instead of the peer's patterns.
    """
    kinds = [dict(said) for said in layers.values() if said is not None]
    if not kinds:
        return {"quant_algo": None, "kv_cache_quant_algo": cache}, None
    if any(kind != kinds[0] for kind in kinds):
        both = {"quant_algo": MIXED, "kv_cache_quant_algo": cache}
        return both, {**both, "quantized_layers": {n: dict(said) for n, said in layers.items() if said}}
    plain = [name for name, said in layers.items() if said is None]
    quantized = [name for name, said in layers.items() if said is not None]
    exclude = [*READER_EXCLUDES, *sorted(plain)] if for_reader else _patterns(plain, quantized)
    if shares_head and not for_reader:
        exclude.append("lm_head")
    return {**kinds[0], "kv_cache_quant_algo": cache, "exclude_modules": exclude}, None


def stage_metadata(stages: Sequence[LayerMetadata]) -> LayerMetadata:
    """Return what is said of the layers of every stage, which have the same names in each.

    Raises:
        ExportError: stages differ: one config.json cannot describe them.
    """
    merged: dict[str, Mapping[str, Any] | None] = {}
    differing = []
    for stage in stages:
        for name, said in stage.items():
            if merged.setdefault(name, said) != said:
                differing.append(name)
    if differing:
        raise ExportError(
            f"stages of the pipeline count their blocks from 0, and {listed(sorted(set(differing)), 3)} are quantized "
            "in other formats in one stage than in another, which one config.json cannot say; use one stage "
            "(inference_pipeline_parallel=1), or one format"
        )
    return merged


def _patterns(plain: Sequence[str], quantized: Sequence[str]) -> list[str]:
    """Return the shortest patterns, a beginning and `*`, that match plain layers and no quantized one."""
    return sorted({next(_candidates(name, quantized)) for name in plain})


def _candidates(name: str, quantized: Sequence[str]) -> Iterator[str]:
    for end in (index for index, letter in enumerate(name) if letter == "."):
        beginning = name[:end]
        if not any(other.startswith(beginning) for other in quantized):
            yield f"{beginning}*"
        if not any(other == beginning or other.startswith(f"{beginning}.") for other in quantized):
            yield f"{beginning}.*"
    yield name
