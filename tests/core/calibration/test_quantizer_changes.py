"""Switching the quantizers of a quantized model, and giving them other formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_models import calibrated_state
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import ConfigError, ModeError, PlanError
from octavo.core.modules import tensor_quantizers

INT8_WEIGHT = {"num_bits": 8, "axis": 0, "block_sizes": None}
INT8_INPUT = {"num_bits": 8, "axis": None, "block_sizes": None, "type": "static"}


def quantized(preset: str = "FP8_DEFAULT_CFG") -> nn.Module:
    return octavo.quantize(tiny_llama(), octavo.preset(preset), token_batches(), quiet=True)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(token_batches()[0]).logits
    return found


def on(model: nn.Module) -> set[str]:
    return {name for name, quantizer in tensor_quantizers(model) if quantizer.enabled}


def test_off_and_on_again_is_the_same_model() -> None:
    model, plain = quantized(), tiny_llama()
    before, names = logits(model), on(model)
    octavo.disable_quantizer(model, "*")
    assert torch.equal(logits(model), logits(plain))

    octavo.enable_quantizer(model, "*")

    assert torch.equal(logits(model), before)
    assert on(model) == names, "output quantizers have no format, and stay off"


def test_a_wildcard_and_a_function_mean_the_same_quantizers() -> None:
    by_glob, by_function = quantized(), quantized()

    octavo.disable_quantizer(by_glob, "*.layers.0.*input_quantizer")
    octavo.disable_quantizer(by_function, lambda n: ".layers.0." in n and n.endswith("input_quantizer"))

    assert on(by_glob) == on(by_function)
    assert len(on(quantized()) - on(by_glob)) == 7


def test_another_format_needs_calibration_and_then_equals_a_model_quantized_so() -> None:
    model = quantized("NVFP4_DEFAULT_CFG")
    octavo.set_quantizer_attribute(model, "*weight_quantizer", INT8_WEIGHT, parent_class=nn.Linear)
    octavo.set_quantizer_attribute(model, "*input_quantizer", INT8_INPUT, parent_class="nn.Linear")
    assert logits(model).isnan().all(), "too early is loud"

    octavo.calibrate(model, "max", token_batches(), quiet=True)

    assert torch.equal(logits(model), logits(quantized("INT8_DEFAULT_CFG")))


def test_attributes_that_are_not_given_stay_and_so_does_a_state_that_still_fits() -> None:
    model = quantized()
    before = calibrated_state(model)

    octavo.set_quantizer_attribute(model, "*weight_quantizer", {"num_bits": (4, 3), "pass_through_bwd": True})

    assert calibrated_state(model) == before
    masks = {name.rpartition(".")[2]: q.range_mask for name, q in tensor_quantizers(model) if q.enabled}
    assert masks == {"weight_quantizer": False, "input_quantizer": True}
    octavo.set_quantizer_attribute(model, "*up_proj.weight_quantizer", {"axis": 0})
    assert str(model.get_submodule("model.layers.0.mlp.up_proj").weight_quantizer.spec) == "e4m3 channel0"


def test_entries_of_a_config_win_in_order_and_start_from_what_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = quantized()
    octavo.set_quantizer_by_cfg(
        model,
        [
            {"quantizer_name": "*input_quantizer", "enable": False},
            {"quantizer_name": "*.down_proj.input_quantizer", "enable": True},
            {"quantizer_name": "*.q_proj.weight_quantizer", "cfg": [{"num_bits": 4, "axis": 0}, {"num_bits": (4, 3)}]},
            {"quantizer_name": "*qq_proj*", "enable": False},
        ],
    )  # fmt: skip

    down, q = (model.get_submodule(f"model.layers.1.{n}") for n in ("mlp.down_proj", "self_attn.q_proj"))
    assert sum(name.endswith("input_quantizer") for name in on(model)) == 2
    assert not down.input_quantizer.needs_calibration
    assert [str(stage.spec) for stage in q.weight_quantizer.stages()] == ["int4 channel0", "e4m3 tensor"]
    assert "entry '*qq_proj*' matches no quantizer" in capsys.readouterr().err


def test_a_pinned_amax_needs_no_calibration() -> None:
    model = quantized()
    octavo.set_quantizer_attribute(model, "*input_quantizer", {"constant_amax": 2.0})

    assert {q.amax.item() for n, q in tensor_quantizers(model) if n.endswith("input_quantizer")} == {2.0}
    assert logits(model).isfinite().all()


def test_what_a_checkpoint_stores_follows(tmp_path: Any) -> None:
    model = quantized()
    octavo.disable_quantizer(model, "*down_proj*")
    octavo.export_hf_checkpoint(model, export_dir=tmp_path / "out", quiet=True)

    with octavo.finalized(model, "unified_hf"):
        expected = logits(model)
    served = octavo.load_quantized(tmp_path / "out")
    assert torch.equal(logits(served), expected)
    before = calibrated_state(served)
    octavo.disable_quantizer(served, "*")
    octavo.enable_quantizer(served, "*")
    assert calibrated_state(served) == before, "a dialect's own arithmetic is kept, too"
    assert torch.equal(logits(served), expected)


BAD = {
    "unknown attribute": ("*", {"num_bit": 4}, ConfigError, "unknown quantizer attribute 'num_bit'.*'num_bits'"),
    "contradiction": (
        "*up_proj.weight_quantizer", {"axis": 0, "block_sizes": {-1: 32}}, ConfigError,
        r"^model.layers.0.mlp.up_proj.weight_quantizer: axis=0 excludes block_sizes=\{-1: 32\}",
    ),
    "block": (
        "*down_proj.weight_quantizer", {"block_sizes": {-1: 100}}, PlanError,
        "^2 quantizers do not fit; nothing was changed: model.layers.0.mlp.down_proj.weight_quantizer: last dim 256 is "
        "not divisible by the block of 100",
    ),
    "varying shape": ("*input_quantizer", {"axis": 0}, PlanError, "follow a dim that varies from call to call"),
    "glob": ("*up_prj.weight_quantizer", {"num_bits": 4}, ConfigError, "matches no quantizer.*'model.*up_proj"),
    "function": (lambda name: False, {"num_bits": 4}, ConfigError, "is true for no quantizer of this model. Only la"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_what_is_wrong_and_change_nothing(case: str) -> None:
    names, attributes, error, message = BAD[case]
    model = quantized()
    before = {name: str(quantizer) for name, quantizer in tensor_quantizers(model)}

    with pytest.raises(error, match=message):
        octavo.set_quantizer_attribute(model, names, attributes)

    assert {name: str(quantizer) for name, quantizer in tensor_quantizers(model)} == before


def test_nothing_to_turn_on() -> None:
    with pytest.raises(
        ConfigError, match=r"^14 quantizers match and none has a format.*q_proj.output_quantizer"
    ):
        octavo.enable_quantizer(quantized(), "*output_quantizer")


def test_the_model_must_be_quantized_and_not_finalized() -> None:
    with pytest.raises(ModeError, match="not quantized"):
        octavo.disable_quantizer(tiny_llama(), "*")
    model = quantized()
    octavo.finalize(model, "unified_hf")
    with pytest.raises(ModeError, match=r"finalized for unified_hf.*before changing the quantizers"):
        octavo.set_quantizer_by_cfg(model, {"*": {"num_bits": 4}})


def test_the_summary_has_a_line_for_each(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    layer = quantized().get_submodule("model.layers.0.mlp.up_proj")
    octavo.print_quant_summary(layer)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [
        "input_quantizer",
        "weight_quantizer",
        "output_quantizer",
    ]
    amax = f"{layer.weight_quantizer.amax.item():.4g}"
    assert lines[1].endswith(f" TensorQuantizer(e4m3 tensor, amax={amax})")
    assert lines[2:] == [f"{'output_quantizer':80} TensorQuantizer(off)", "3 TensorQuantizers found in model"]

    octavo.print_quant_summary(layer, tmp_path / "new")
    assert (tmp_path / "new" / ".quant_summary.txt").read_text().splitlines() == lines
