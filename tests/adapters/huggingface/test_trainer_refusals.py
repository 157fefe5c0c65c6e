"""What the callback refuses, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import octavo
from helpers.trainers import callback, make_trainer, model_of


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"metrics": "layer"},
            octavo.ConfigError,
            r"metrics='layer'; expected one of .* Did you mean 'layers'",
        ),
        ({"calibration": -1}, octavo.ConfigError, r"calibration=-1; expected a number of batches"),
        ({"weight_scales": "learned"}, octavo.ConfigError, r"weight_scales='learned'; expected one of held"),
        ({"exporter": "unified_hf"}, octavo.ConfigError, r"exporter='unified_hf' without export_dir"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        callback(**options)


def test_a_place_where_nothing_could_be_written_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(octavo.ExportError, match="is not empty; give another folder"):
        callback(export_dir=tmp_path)
    with pytest.raises(octavo.PluginError, match="unified"):
        callback(export_dir=tmp_path / "out", exporter="unified")


def test_a_model_that_is_quantized_already(stories: Path, tmp_path: Path) -> None:
    model = octavo.quantize(model_of(stories), "INT8_WEIGHT_ONLY_CFG", quiet=True)

    with pytest.raises(octavo.ModeError, match=r"quantized already \(35 layers, first 'model\.layers\.0\."):
        make_trainer(stories, tmp_path, callback(), model=model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_with_adapters(stories: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model_of(stories), peft.LoraConfig(target_modules=["q_proj"]))

    with pytest.raises(octavo.UnsupportedError, match=r"is a PeftModel: .* \(octavo\.add_adapters\)"):
        make_trainer(stories, tmp_path, callback(), model=model)


def test_a_trainer_without_the_callback_whose_reporters_it_is_to_lead(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path)

    with pytest.raises(octavo.TrainingError, match="none of this Trainer's"):
        callback().go_ahead_of_reporters(trainer)


def test_an_engine_that_would_refuse_it(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(octavo.PlanError, match=r"8 attention heads cannot be split over tp=3"):
        make_trainer(stories, tmp_path, callback(target="vllm", tp=3))


def test_an_optimizer_from_before_the_quantizers(stories: Path, tmp_path: Path) -> None:
    model = model_of(stories)
    early = torch.optim.AdamW(model.parameters(), lr=1e-4)
    trainer = make_trainer(
        stories, tmp_path, callback(weight_scales="lsq"), model=model, optimizers=(early, None)
    )

    with pytest.raises(
        octavo.TrainingError, match=r"lacks 35 learned scales \(first 'model\.layers\.0\..*amax_shift'"
    ):
        trainer.train()


def test_data_is_needed_and_none_is_allowed(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path, callback("INT8_DEFAULT_CFG", calibration=0))

    with pytest.raises(octavo.CalibrationError, match="35 quantizers need calibration data"):
        trainer.train()


def test_a_callback_that_comes_too_late(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path)
    trainer.add_callback(callback())

    with pytest.raises(octavo.TrainingError, match=r"too late .* give it to Trainer\(callbacks="):
        trainer.train()


def test_a_model_that_the_trainer_makes_anew(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path, callback(), model_init=lambda: model_of(stories))

    with pytest.raises(octavo.TrainingError, match="trains another model than the one"):
        trainer.train()


class Breaks(TrainerCallback):  # type: ignore[misc]
    """Breaks a weight after the first step, as an update that was too large does."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        torch.nn.init.constant_(model.model.layers[2].mlp.up_proj.weight, torch.nan)


def test_a_loss_that_is_not_finite(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(stories, tmp_path, callback(metrics="none"), Breaks(), steps=3)

    with pytest.raises(
        octavo.TrainingError, match=r"loss is nan; .* is 'model\.layers\.2\.mlp\.up_proj\.weight'"
    ):
        trainer.train()
    assert trainer.state.global_step == 1
