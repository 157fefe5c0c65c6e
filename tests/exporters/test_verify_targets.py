"""What is exported for an engine has nothing in it that its reader would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from helpers.exporters_models import export, quantized
from helpers.family_cases import family_cases
from helpers.verification import errors, warnings
from octavo.core.model.targets import TARGETS

OTHER = {"vllm": "transformers", "sglang": "transformers", "trtllm": "transformers", "transformers": "trtllm"}


@pytest.mark.parametrize("target", TARGETS)
def test_exports_for_a_target_have_no_errors(target: str, tmp_path: Path) -> None:
    folder = export(quantized("FP8_DEFAULT_CFG", torch.bfloat16), tmp_path / "out", target=target)

    assert errors(folder, target) == []
    assert octavo.verify_checkpoint(folder, OTHER[target]) != []  # so the reader that is asked about counts


@pytest.mark.parametrize("family", ["Phi 3, 4", "GPT-2", "Mixtral", "gpt-oss", "DeepSeek V3, R1", "LLaVA"])
def test_other_layouts_of_models_raise_no_false_alarm(family: str, tmp_path: Path) -> None:
    """Fused and transposed layers, experts apart and in one tensor, a router without a class of its own, a tower."""
    case = family_cases()[family]
    model = octavo.quantize(case.model(), case.quant_config("FP8"), [case.batch()], quiet=True)
    folder = export(model, tmp_path / "out")

    assert errors(folder) == []
    one_tensor = {f.place for f in warnings(folder) if f.found == "quantized experts in one tensor"}
    assert len(one_tensor) == (4 if family == "gpt-oss" else 0)
