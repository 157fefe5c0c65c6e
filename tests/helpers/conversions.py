"""Checkpoints to convert, and what the tests of conversion compare them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import octavo
from helpers.exporters_models import Config, export, json_of, quantized, same, tensors_of
from octavo.core.evaluation.read_back import exporter_of

INT4 = octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32)
# Formats that both dialects have, whose numbers both hold exactly where weights are fp32.
HELD_BY_BOTH: Mapping[str, Config] = {
    "INT8": "INT8_DEFAULT_CFG",
    "W8A16": "INT8_WEIGHT_ONLY_CFG",
    "W4A16": INT4,
    "FP8 channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "MXFP4": "MXFP4_MLP_WEIGHT_ONLY_CFG",
}

Unified = Callable[[str], Path]
"""Returns the checkpoint of a case in ModelOpt's dialect."""


def exported(config: Config, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    return export(quantized(config, dtype), directory, **options)


def different(first: Path, second: Path) -> list[str]:
    """Return the tensors that two checkpoints do not both have, bit for bit."""
    one, other = tensors_of(first), tensors_of(second)
    return sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not same(one[name], other[name])
    )


def description(directory: Path) -> Any:
    return json_of(directory / "config.json")["quantization_config"]


def values_of(directory: Path) -> dict[str, Tensor]:
    """Return every tensor of a quantized checkpoint as fp32 values."""
    return {
        name: (value.float() if isinstance(value, Tensor) else value.dequantize(torch.float32))
        for name, value in exporter_of(directory).open(directory).tensors()
    }
