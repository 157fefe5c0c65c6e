"""What is exported for an engine has nothing in it that its reader would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.exporters_models import export, quantized
from helpers.verification import errors
from octavo.core.model.targets import TARGETS

OTHER = {"vllm": "transformers", "sglang": "transformers", "trtllm": "transformers", "transformers": "trtllm"}


@pytest.mark.parametrize("target", TARGETS)
def test_exports_for_a_target_have_no_errors(target: str, tmp_path: Path) -> None:
    folder = export(quantized("FP8_DEFAULT_CFG", torch.bfloat16), tmp_path / "out", target=target)

    assert errors(folder, target) == []
    assert octavo.verify_checkpoint(folder, OTHER[target]) != []  # so the reader that is asked about counts
