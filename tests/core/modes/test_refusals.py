"""What `save` and `restore` refuse: models with modes, finalized models, tensors that cannot be stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import rows, two_layers
from helpers.calibration_snapshot import snapshot
from helpers.modes_saved import logits, plain, quantized, scrambled
from octavo.core.errors import ExportError, ModeError
from octavo.core.model.shards import SafetensorsWriter


def test_a_model_that_has_modes_is_not_restored_into(tmp_path: Path) -> None:
    model = quantized()
    octavo.save(model, tmp_path / "saved")
    before = snapshot(model)

    with pytest.raises(ModeError, match=r"^the model has modes already: quantize; use a plain one$"):
        octavo.restore(model, tmp_path / "saved")

    assert snapshot(model) == before
    assert len(octavo.history(model)) == 1


def test_a_finalized_model_is_not_saved(tmp_path: Path) -> None:
    model = quantized()
    message = r"^the model is finalized for unified_hf; call octavo.unfinalize\(model\) before saving it$"

    with octavo.finalized(model, "unified_hf"), pytest.raises(ModeError, match=message):
        octavo.save(model, tmp_path / "saved")

    assert list(tmp_path.iterdir()) == []
    octavo.save(model, tmp_path / "saved")
    assert octavo.history(octavo.restore(plain(), tmp_path / "saved"))


def test_a_finalized_model_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized()
    written: list[str] = []
    monkeypatch.setattr(SafetensorsWriter, "add", lambda self, name, tensor: written.append(name))

    with octavo.finalized(model, "unified_hf"), pytest.raises(ModeError, match="finalized for unified_hf"):
        octavo.save(model, tmp_path / "saved")

    assert written == []


def outcome_of(action: Callable[[], Any]) -> str:
    """Return what Octavo refused with, or "done"."""
    try:
        action()
    except octavo.OctavoError as error:
        return str(error)
    return "done"


class WithExtraState(nn.Linear):
    """torch lets a module put anything into its state dict."""

    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        self.steps = state["steps"]


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(octavo.OctavoError, match=r"0._extra_state.*dict"):
        octavo.save(nn.Sequential(WithExtraState(32, 32)), tmp_path / "saved")

    assert list(tmp_path.iterdir()) == []


def test_parameters_that_share_memory_are_saved_or_refused_by_name(tmp_path: Path) -> None:
    """Tied through `.data`, as older code does: two parameters, one storage."""
    model = two_layers()
    model.append(nn.Linear(32, 16))
    model[2].weight = nn.Parameter(model[1].weight.data)

    outcome = outcome_of(lambda: octavo.save(model, tmp_path / "saved"))

    assert outcome == "done" or {"1.weight", "2.weight"} <= set(re.findall(r"\d\.weight", outcome))


def test_a_plain_model_of_another_dtype_is_not_filled_in_silence(tmp_path: Path) -> None:
    model = quantized()
    octavo.save(model, tmp_path / "saved")
    restored = scrambled(dtype=torch.bfloat16)

    outcome = outcome_of(lambda: octavo.restore(restored, tmp_path / "saved"))

    if outcome == "done":
        assert torch.equal(logits(restored).float(), logits(model))
    else:
        assert {"bfloat16", "float32"} <= set(re.findall(r"b?float\d\d", outcome))


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    message = r"^writing .*/saved failed: \[Errno 5\] Input/output error. Nothing was put there"
    with pytest.raises(ExportError, match=message):
        octavo.save(
            octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True), tmp_path / "saved"
        )

    assert list(tmp_path.iterdir()) == []
