"""What blocks are called with is known before one of them runs, or the model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.adapters_models import tiny_model
from helpers.streaming import stream
from octavo.core.errors import UnsupportedError


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gptj", r"block transformer.h.0 returns tensors beside hidden states, which later blocks may read"),
        ("bloom", r"BloomForCausalLM does not run on the meta device \(ValueError: "),
    ],
)
def test_models_whose_blocks_do_not_stand_alone(tmp_path: Path, model_type: str, message: str) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedError, match=message + r".* in memory \(leave out --stream\)"):
        stream(tmp_path / "source", tmp_path / "out", data=[torch.arange(2, 14)[None]])
    assert not (tmp_path / "out.partial").exists()
