"""`calibrate` gives state to quantizers that have none, after loading too, and touches no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import octavo
from helpers.calibration_models import calibrated_state
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import CalibrationError, ModeError
from octavo.core.modules import tensor_quantizers

FIRST, SECOND = token_batches(1), token_batches(3)[1:]
CONFIG = octavo.merge_configs("FP8_DEFAULT_CFG", "FP8_KV_CFG")


def quantized(batches: list[torch.Tensor]) -> nn.Module:
    return octavo.quantize(tiny_llama(num_hidden_layers=1), CONFIG, batches, quiet=True)


def forget(model: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Mark quantizers as never calibrated; their maxima become NaN again, as they begin."""
    forgotten = []
    for name, quantizer in tensor_quantizers(model):
        if quantizer.spec is not None and quantizer.spec.state and wanted(name):
            quantizer.calibrated.zero_()
            quantizer.amax.fill_(torch.nan)
            forgotten.append(name)
    return forgotten


def saved_and_restored(model: nn.Module, tmp_path: Path) -> nn.Module:
    octavo.save(model, tmp_path / "saved")
    return octavo.restore(tiny_llama(num_hidden_layers=1), tmp_path / "saved")


def exported_and_read(model: nn.Module, tmp_path: Path) -> nn.Module:
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)
    return octavo.load_quantized(tmp_path / "out")


def test_a_restored_model_is_calibrated_as_a_fresh_one_is(tmp_path: Path) -> None:
    model = quantized(FIRST)
    forget(model)
    model = saved_and_restored(model, tmp_path)
    with torch.no_grad():
        assert model(FIRST[0]).logits.isnan().all(), "quantizers without state are loud"

    octavo.calibrate(model, "max", SECOND, quiet=True)

    assert calibrated_state(model) == calibrated_state(quantized(SECOND))
    assert calibrated_state(model) != calibrated_state(quantized(FIRST))


def test_offloaded_weights_are_no_obstacle() -> None:
    """accelerate keeps them on the meta device between forward passes."""
    model = quantized(FIRST)
    before = calibrated_state(model)
    forget(model)
    cpu_offload(model, execution_device="cpu")

    octavo.calibrate(model, "max", FIRST, quiet=True)

    assert calibrated_state(model) == before


@pytest.mark.parametrize("load", [saved_and_restored, exported_and_read])
def test_a_loaded_model_that_is_calibrated_keeps_its_state(load: Any, tmp_path: Path) -> None:
    model = load(quantized(FIRST), tmp_path)
    before = snapshot(model)

    def never(_: nn.Module) -> None:
        raise AssertionError("run although everything is calibrated")

    octavo.calibrate(model, "max", never, quiet=True)

    assert snapshot(model) == before


def test_activations_of_a_checkpoint_read_back_are_calibrated_where_they_are_not(tmp_path: Path) -> None:
    model = exported_and_read(quantized(FIRST), tmp_path)
    kept = calibrated_state(model)
    forgotten = forget(model, lambda name: name.endswith("o_proj.input_quantizer"))

    octavo.calibrate(model, "max", SECOND, quiet=True)

    changed = {name for name, value in calibrated_state(model).items() if value != kept[name]}
    assert (
        changed
        == {f"{name}.amax" for name in forgotten}
        == {"model.layers.0.self_attn.o_proj.input_quantizer.amax"}
    )


def test_only_what_waits_is_calibrated() -> None:
    model = quantized(FIRST)
    before = calibrated_state(model)
    (name,) = forget(model, lambda name: name.endswith("mlp.down_proj.weight_quantizer"))

    octavo.calibrate(model)

    assert calibrated_state(model) == before
    assert name


def test_missing_data_is_named_as_in_quantize() -> None:
    model = quantized(FIRST)
    forget(model, lambda name: name.endswith("mlp.down_proj.input_quantizer"))

    message = (
        r"^1 quantizers need calibration data and no forward_loop \(--calib-data\) was given: "
        "model.layers.0.mlp.down_proj.input_quantizer$"
    )
    with pytest.raises(CalibrationError, match=message):
        octavo.calibrate(model)


def test_a_finalized_model_is_refused() -> None:
    model = quantized(FIRST)
    octavo.finalize(model, "unified_hf")
    forget(model, lambda name: name.endswith("o_proj.input_quantizer"))

    with pytest.raises(ModeError, match=r"finalized for unified_hf; call octavo.unfinalize\(model\)"):
        octavo.calibrate(model, "max", SECOND, quiet=True)


def test_data_that_would_be_ignored_is_not_ignored_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    model = quantized(FIRST)

    octavo.calibrate(model, "max", SECOND)

    recalibrated = calibrated_state(model) == calibrated_state(quantized(SECOND))
    assert recalibrated or "calibrated" in capfd.readouterr().err
