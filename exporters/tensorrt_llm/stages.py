"""Which stage has a tensor, and by which name: layers are numbered from 0 in each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo.core.errors import CheckpointError, ExportError, UnsupportedError
from octavo.exporters.tensorrt_llm.division import rules
from octavo.exporters.tensorrt_llm.layout import Layout, size_of

LAYER = re.compile(r"(?P<before>(?:.*[.*])?(?:encoder_|decoder_)?layers\.)(?P<number>\d+)(?P<after>|\..*)")


def to_local(name: str, config: Mapping[str, Any], layout: Layout) -> tuple[int, str]:
    """Return the stage that has a tensor, and the tensor's name there.

    Raises:
        ExportError: the stages would differ in length, or there is no such layer.
        UnsupportedError: which stage has it is not known.
    """
    layer = LAYER.fullmatch(name)
    if layer is None:
        return _stage_of(name, layout.pp_size), name
    number, layers = int(layer["number"]), size_of(config, "num_hidden_layers")
    if layers % layout.pp_size or number >= layers:
        raise ExportError(
            f"tensor {name!r} cannot be put on one of {layout.pp_size} equal stages of {layers} layers in all"
        )
    stage, local = divmod(number, layers // layout.pp_size)
    return stage, f"{layer['before']}{local}{layer['after']}"


def to_global(name: str, stage: int, config: Mapping[str, Any], layout: Layout) -> str:
    """Return the name in a checkpoint of one rank of a tensor that `stage` calls `name`.

    Raises:
        CheckpointError: a stage has no such layer.
    """
    layer = LAYER.fullmatch(name)
    if layer is None:
        return name
    number, length = int(layer["number"]), size_of(config, "num_hidden_layers") // layout.pp_size
    if number >= length:
        raise CheckpointError(
            f"tensor {name!r} of stage {stage} is in layer {number}; config.json says that each of {layout.pp_size} "
            f"stages has {length} layers"
        )
    return f"{layer['before']}{stage * length + number}{layer['after']}"


def _stage_of(name: str, pp_size: int) -> int:
    parts = name.split(".")
    if pp_size == 1 or set(parts) & set(rules()["first_stage"]):
        return 0
    if set(parts) & set(rules()["last_stage"]):
        return pp_size - 1
    raise UnsupportedError(
        f"which of {pp_size} stages has tensor {name!r} is not known; tensors outside layers that are known: "
        f"{', '.join(rules()['first_stage'] + rules()['last_stage'])}. Use one stage"
    )
