"""Arguments of an export that mean nothing are refused with their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "bfloat16"}, "a float one; found 'bfloat16'$"),
        ({"dtype": torch.int8}, r"a float one; found torch\.int8$"),
        ({"max_shard_bytes": "5GB"}, "max_shard_bytes is a whole number, at least 1; found '5GB'$"),
        ({"max_shard_bytes": 0}, "max_shard_bytes is a whole number, at least 1; found 0$"),
    ],
)
def test_what_means_nothing(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = octavo.quantize(nn.Sequential(nn.Linear(4, 4)), "INT8_WEIGHT_ONLY_CFG", quiet=True)

    with pytest.raises(octavo.ExportError, match=message):
        octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", **option)
