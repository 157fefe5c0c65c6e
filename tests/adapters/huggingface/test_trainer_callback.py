"""OctavoCallback in the stock Trainer: what it logs, evaluates and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

import octavo
from helpers.trainers import callback, make_trainer, model_of, samples
from octavo.core.modules import quantized_layers, tensor_quantizers


def states(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, quantizer in tensor_quantizers(model):
        found |= {f"{name}.{kind}": tensor.clone() for kind, tensor in quantizer.named_state().items()}
    return found


def logits(model: torch.nn.Module, stories: Path) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(samples(stories)[45]["input_ids"][None]).logits
    return output


def test_what_is_exported_is_what_was_trained(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    trainer = make_trainer(stories, tmp_path, callback(weight_scales="lsq", export_dir=out, target="vllm"))
    trainer.train()

    assert (out / "config.json").is_file()
    assert [f for f in octavo.verify_checkpoint(out, "vllm") if f.severity == "error"] == []
    with octavo.finalized(trainer.model, "compressed_tensors", target="vllm"):
        wanted = logits(trainer.model, stories)
    assert torch.equal(logits(octavo.load_quantized(out), stories), wanted)
    fresh = octavo.quantize(model_of(stories), octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32))
    calibrated, learned = states(fresh), states(trainer.model)
    assert calibrated.keys() == learned.keys()
    assert not any(torch.equal(calibrated[name], learned[name]) for name in calibrated)


@pytest.mark.parametrize("exporter", ["unified_hf", "tensorrt_llm"])
def test_every_exporter_writes_what_was_trained(stories: Path, tmp_path: Path, exporter: str) -> None:
    out = tmp_path / "exported"
    trainer = make_trainer(
        stories, tmp_path, callback("FP8_DEFAULT_CFG", export_dir=out, exporter=exporter, tp=2), steps=1
    )
    trainer.train()

    consumer = {"unified_hf": "vllm", "tensorrt_llm": "trtllm"}[exporter]
    assert [f for f in octavo.verify_checkpoint(out, consumer) if f.severity == "error"] == []
    assert len(list(out.glob("rank*.safetensors"))) == (2 if exporter == "tensorrt_llm" else 0)


def test_logs_and_evaluations(stories: Path, tmp_path: Path) -> None:
    plain = make_trainer(stories, tmp_path / "plain").evaluate()["eval_loss"]
    schedule = octavo.Schedule(weights_from=1)
    trainer = make_trainer(
        stories,
        tmp_path,
        callback(metrics="layers", evaluate_unquantized=True, schedule=schedule),
        steps=2,
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()

    first_evaluation, first, _, last_evaluation, _ = trainer.state.log_history
    assert first_evaluation["eval_loss"] == pytest.approx(plain, abs=1e-6), (
        "weights are rounded from step 1 on"
    )
    assert first_evaluation["eval_unquantized_loss"] == pytest.approx(plain, abs=1e-6)
    assert last_evaluation["eval_loss"] != last_evaluation["eval_unquantized_loss"]
    layers = {name for name, _ in quantized_layers(trainer.model)}
    assert {f"weight_sqnr_db/{name}" for name in layers} <= first.keys()
    assert all(10 < first[f"weight_sqnr_db/{name}"] < 30 for name in layers)
    assert all(0 < first[f"scale_drift/{name}"] < 0.5 for name in layers)
    assert first["weight_sqnr_db_min"] == min(first[f"weight_sqnr_db/{name}"] for name in layers)


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Notes the rows of training that it gets, as those of `report_to` do."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.rows.append(dict(logs))


class LaterReporter(Reporter):
    """One that the Trainer calls after the callback."""


def test_reporters_get_the_metrics_where_the_callback_goes_ahead(stories: Path, tmp_path: Path) -> None:
    for goes_ahead in (False, True):
        before, after, ours = Reporter(), LaterReporter(), callback()
        trainer = make_trainer(stories, tmp_path, before, ours, after, steps=1)
        if goes_ahead:
            ours.go_ahead_of_reporters(trainer)
        trainer.train()

        metrics = {"weight_sqnr_db", "weight_sqnr_db_min", "scale_drift", "scale_drift_max"}
        assert metrics <= after.rows[0].keys()
        assert metrics & before.rows[0].keys() == (metrics if goes_ahead else set())
        assert trainer.state.log_history[0]["weight_sqnr_db"] == after.rows[0]["weight_sqnr_db"]


def test_static_activations_are_calibrated_on_the_first_training_data(stories: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        stories, tmp_path, callback("INT8_DEFAULT_CFG", calibration=3), steps=1, learning_rate=0
    )
    trainer.train()

    first = [torch.stack([s["input_ids"] for s in samples(stories)[i : i + 2]]) for i in (0, 2, 4)]
    wanted = states(octavo.quantize(model_of(stories), "INT8_DEFAULT_CFG", first, quiet=True))
    found = states(trainer.model)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_data_of_ones_own_and_an_algorithm_that_needs_it(stories: Path, tmp_path: Path) -> None:
    config = octavo.with_block_size("INT4_AWQ_CFG", 32)
    data = [sample["input_ids"][None] for sample in samples(stories)[40:44]]
    trainer = make_trainer(stories, tmp_path, callback(config, calibration=data), steps=1, learning_rate=0)
    trainer.train()

    wanted = octavo.quantize(model_of(stories), config, data, quiet=True)
    assert torch.equal(logits(trainer.model, stories), logits(wanted, stories))


# trl 1.16 gives transformers 5.23 arguments by their old names.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_sft_trainer_of_trl(stories: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset
    from transformers import AutoTokenizer

    data = Dataset.from_dict({"text": ["Once upon a time there was a dog."] * 8})
    arguments = trl.SFTConfig(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    trainer = trl.SFTTrainer(
        model_of(stories),
        arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(stories),
        callbacks=[callback()],
    )
    trainer.train()

    assert len(list(quantized_layers(trainer.model))) == 35
