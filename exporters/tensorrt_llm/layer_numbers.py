"""Names of layers in config.json and quant_cfg.json, which count from 0 in each stage, for other stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from octavo.core.errors import UnsupportedError
from octavo.exporters.tensorrt_llm.layout import Layout
from octavo.exporters.tensorrt_llm.stages import LAYER, to_global, to_local

Value = TypeVar("Value")


def renumbered(
    entries: Mapping[str, Value], config: Mapping[str, Any], source: Layout, target: Layout
) -> dict[str, Value]:
    """Return what is said of layers (exclusions, formats), by the names that another layout has for them.

    A file says the same of every stage, whose layers all count from 0: with several stages the format can only
    describe models whose stages are alike.

    Args:
        entries: By name or pattern of a module.
        config: config.json.
        source: The layout that the names belong to.
        target: The one that they shall belong to.

    Raises:
        UnsupportedError: stages of the target would differ, or a pattern matches several numbers of layers.
    """
    if source.pp_size == target.pp_size:
        return dict(entries)
    whole = dict(_whole(entries, config, source))
    local: dict[str, Value] = {}
    for name, value in whole.items():
        local_name = to_local(name, config, target)[1] if LAYER.fullmatch(name) else name
        for stage in range(target.pp_size):
            other = to_global(local_name, stage, config, target)
            if other not in whole or whole[other] != value:
                raise UnsupportedError(
                    f"of the modules {name} and {other} different things are said ({value} and {whole.get(other)}), "
                    f"and with {target.pp_size} stages both have the same name; choose fewer stages"
                )
        local.setdefault(local_name, value)
    return local


def _whole(
    entries: Mapping[str, Value], config: Mapping[str, Any], source: Layout
) -> Iterator[tuple[str, Value]]:
    for name, value in entries.items():
        if LAYER.fullmatch(name) is None and re.search(r"layers\.[\d\[?]", name):
            raise UnsupportedError(
                f"pattern {name!r} of modules may match several numbers of layers, which other stages do not have; "
                "write one pattern for each layer"
            )
        stages = range(source.pp_size) if LAYER.fullmatch(name) else range(1)
        for stage in stages:
            yield to_global(name, stage, config, source), value
