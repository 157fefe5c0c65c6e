"""Which format each layer of a checkpoint has, by config.json and quant_cfg.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.errors import CheckpointError, nearest
from octavo.core.model.shard_reader import read_json
from octavo.exporters.tensorrt_llm.caches import CACHES
from octavo.exporters.tensorrt_llm.formats import Format, formats
from octavo.exporters.tensorrt_llm.layer_numbers import renumbered
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.rank_reader import CONFIG_FILE, LAYERS_FILE, RankReader

_MIXED = "MIXED_PRECISION"


def layer_formats(ranks: RankReader, layers: Sequence[str]) -> dict[str, Format]:
    """Return the format of each of the layers that have scales, by its name in a checkpoint of one rank.

    Raises:
        CheckpointError: a layer is not described, or a format is unknown.
        UnsupportedError: patterns in quant_cfg.json cannot be read for the checkpoint's stages.
    """
    if not layers:
        return {}
    algo = _quantization(ranks).get("quant_algo")
    if algo != _MIXED:
        known = _format(algo, f"{ranks.directory / CONFIG_FILE}")
        return dict.fromkeys(layers, known)
    path = ranks.directory / LAYERS_FILE
    said = read_json(path).get("quantized_layers")
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{path} must hold 'quantized_layers' by module, found {said!r}")
    entries = renumbered(said, ranks.config, ranks.layout, Layout(1, 1))
    for layer in layers:
        if not isinstance(entries.get(layer), Mapping):
            raise CheckpointError(
                f"{path} must describe {layer}, which has scales; found {entries.get(layer)!r}."
                f"{nearest(layer, entries)}"
            )
    return {layer: _format(entries[layer].get("quant_algo"), f"{path}, {layer}") for layer in layers}


def cache_algo(ranks: RankReader) -> str | None:
    """Return the name of the format that keys and values have in the cache, or None.

    Raises:
        CheckpointError: it is unknown.
    """
    name = _quantization(ranks).get("kv_cache_quant_algo")
    if name is not None and name not in CACHES:
        raise CheckpointError(
            f"{ranks.directory / CONFIG_FILE} names the cache's format {name!r}; known: {', '.join(CACHES)}"
        )
    return name


def _quantization(ranks: RankReader) -> Mapping[str, Any]:
    found = ranks.config.get("quantization") or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{ranks.directory / CONFIG_FILE}: quantization must be an object, found {found!r}"
        )
    return found


def _format(algo: object, where: str) -> Format:
    for known in formats():
        if known.quant_algo == algo:
            return known
    names = list(dict.fromkeys(known.quant_algo for known in formats()))
    raise CheckpointError(
        f"{where}: unknown quant_algo {algo!r}; known: {', '.join(names)}.{nearest(str(algo), names)}"
    )
