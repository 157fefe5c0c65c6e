"""What `quantize`, `calibrate` and `unquantize` refuse before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from helpers.calibration_models import rows, two_layers
from helpers.calibration_snapshot import snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import ModeError, PlanError


def test_a_quantized_model_is_refused_and_stays_quantized() -> None:
    model = octavo.quantize(two_layers(), "FP8_DEFAULT_CFG", [rows()], quiet=True)
    before = snapshot(model)

    message = (
        r"^the model is quantized already \(2 layers, first '0'\); call octavo.unquantize\(model\) first$"
    )
    with pytest.raises(ModeError, match=message):
        octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)

    assert snapshot(model) == before
    assert len(octavo.history(model)) == 1


def test_a_model_of_which_one_layer_is_quantized_is_refused() -> None:
    inner = octavo.quantize(two_layers(), "INT8_WEIGHT_ONLY_CFG", quiet=True)

    with pytest.raises(ModeError, match=r"quantized already \(2 layers, first '1.0'\)"):
        octavo.quantize(nn.Sequential(nn.Linear(32, 32), inner), "INT8_WEIGHT_ONLY_CFG", quiet=True)


def test_a_checkpoint_read_back_is_quantized_already(tmp_path: Path) -> None:
    model = octavo.quantize(tiny_llama(num_hidden_layers=1), "FP8_DEFAULT_CFG", token_batches(1), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    with pytest.raises(
        ModeError, match=r"quantized already \(7 layers, first 'model.layers.0.self_attn.q_proj'\)"
    ):
        octavo.quantize(
            octavo.load_quantized(tmp_path / "out"), "FP8_DEFAULT_CFG", token_batches(1), quiet=True
        )


def test_parameters_without_values_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = tiny_llama(num_hidden_layers=1)
    message = (
        "^11 parameters are on the meta device, without values "
        r"\(first 'model.embed_tokens.weight'\); load the weights first. octavo.plan works on such a model$"
    )
    # One block: q, k, v, o, gate, up, down and two norms; embedding, final norm and lm_head.
    message = message.replace("11", str(sum(1 for _ in model.parameters())))

    with pytest.raises(PlanError, match=message):
        octavo.quantize(model, "FP8_DEFAULT_CFG", token_batches(1), quiet=True)

    assert octavo.plan(model, "FP8_DEFAULT_CFG").errors == ()
    assert all(parameter.is_meta for parameter in model.parameters())


def test_one_parameter_without_values_is_enough() -> None:
    model = two_layers()
    model[1].to("meta")

    with pytest.raises(PlanError, match=r"^2 parameters are on the meta device.*first '1.weight'"):
        octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)


@pytest.mark.parametrize("verb", [octavo.calibrate, lambda model: octavo.finalize(model, "unified_hf")])
def test_a_plain_model_can_be_neither_calibrated_nor_finalized(verb: object) -> None:
    with pytest.raises(ModeError, match=r"^the model is not quantized; call octavo.quantize first$"):
        verb(two_layers())  # type: ignore[operator]


def test_a_plain_model_cannot_be_unquantized() -> None:
    message = "^only a model whose last mode is 'quantize' can be unquantized; found modes: none$"

    with pytest.raises(ModeError, match=message):
        octavo.unquantize(two_layers())


def test_unquantizing_twice_is_refused() -> None:
    model = octavo.unquantize(octavo.quantize(two_layers(), "INT8_WEIGHT_ONLY_CFG", quiet=True))

    with pytest.raises(ModeError, match=r"found modes: none$"):
        octavo.unquantize(model)


def test_a_buffer_without_values_is_refused_by_name() -> None:
    model = two_layers()
    model[1].register_buffer("factor", torch.ones(4, device="meta"))

    with pytest.raises(PlanError, match=r"^1 buffers are on the meta device.*first '1.factor'"):
        octavo.quantize(model, "INT8_WEIGHT_ONLY_CFG", quiet=True)
