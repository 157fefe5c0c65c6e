"""QuantizedTraining in a plain loop: what it turns on and when, what it resumes, and what it leaves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.training_models import INT4_G16, Loop, Net, batch
from octavo.core.modules import tensor_quantizers

WAYS: list[dict[str, Any]] = [
    {},
    {"weight_scales": "recomputed"},
    {"weight_scales": "lsq", "activation_scales": "lsq"},
    {"activation_scales": "pact"},
    {"activation_scales": "observed"},
]


def enabled(model: nn.Module, kind: str) -> list[bool]:
    return [q.enabled for name, q in tensor_quantizers(model) if name.endswith(kind) and q.spec is not None]


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: q.named_state()["amax"].detach().clone() for name, q in tensor_quantizers(model) if q.spec}


def test_until_it_begins_the_model_computes_what_it_did() -> None:
    x = batch(0)["x"]
    wanted = Net().eval()(x)["output"]

    assert torch.equal(Loop().model.eval()(x)["output"], wanted)


def test_at_its_start_the_model_computes_what_quantize_gives() -> None:
    x = batch(7)["x"]
    data = [{"x": batch(step)["x"]} for step in range(2)]
    wanted = octavo.quantize(Net(), INT4_G16, data, quiet=True).eval()(x)["output"]

    found = Loop(weight_scales="lsq", activation_scales="lsq").begin().model.eval()(x)["output"]

    assert torch.equal(found, wanted)


def test_the_schedule_turns_quantizers_on() -> None:
    loop = Loop(schedule=octavo.Schedule(weights_from=1, activations_from=2, ramp=3)).begin()
    seen = []
    for step in range(6):
        loop.training.before_step(step)
        seen.append(
            (sum(enabled(loop.model, "weight_quantizer")), sum(enabled(loop.model, "input_quantizer")))
        )

    assert seen == [(0, 0), (1, 0), (2, 1), (3, 2), (3, 3), (3, 3)]


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_has_the_weights_of_the_uninterrupted_one(ways: dict[str, Any], stop: int) -> None:
    options = {**ways, "schedule": octavo.Schedule(activations_from=2, ramp=2, freeze_scales_at=4)}
    whole = Loop(**options).begin().run(0, 6)
    saved = copy.deepcopy(Loop(**options).begin().run(0, stop).saved())

    resumed = Loop(**options).resume(saved, stop).run(stop, 6)

    wanted, found = whole.model.state_dict(), resumed.model.state_dict()
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_which_scales_change(ways: dict[str, Any]) -> None:
    loop = Loop(**ways).begin()
    before = states(loop.model)
    after = states(loop.run(0, 2).model)

    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    wanted = {"weight_quantizer"} if ways.get("weight_scales") else set()
    assert changed == wanted | ({"input_quantizer"} if ways.get("activation_scales") else set())


@pytest.mark.parametrize("ways", [WAYS[1], WAYS[2], WAYS[4]], ids=str)
def test_frozen_scales_stay_and_weights_go_on(ways: dict[str, Any]) -> None:
    loop = Loop(schedule=octavo.Schedule(freeze_scales_at=2), **ways).begin().run(0, 2)
    before, weight = states(loop.model), loop.model.first.weight.detach().clone()

    after = states(loop.run(2, 4).model)

    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(loop.model.first.weight, weight)


def test_recomputed_scales_are_those_of_the_weights_now() -> None:
    loop = Loop(weight_scales="recomputed").begin().run(0, 2)

    wanted = loop.model.second.weight.detach().reshape(64, 4, 16).abs().amax(-1)
    assert torch.equal(states(loop.model)["second.weight_quantizer"].reshape(64, 4), wanted)
    metrics = loop.training.metrics()
    assert metrics["second"].scale_drift == 0
    assert 10 < (metrics["second"].sqnr_db or 0) < 40


def test_observed_scales_move_a_share_of_the_way_in_each_step() -> None:
    loop = Loop(activation_scales="observed").begin()
    amax = states(loop.model)["first.input_quantizer"]
    with torch.no_grad():
        loop.model.eval()(x=torch.full((2, 32), 1e6))  # evaluation is not training

    loop.run(0, 2)

    for step in range(2):
        amax = 0.95 * amax + 0.05 * batch(step)["x"].abs().max()
    assert states(loop.model)["first.input_quantizer"].item() == pytest.approx(amax.item(), rel=1e-6)


def test_held_scales_drift_as_weights_move_away() -> None:
    loop = Loop().begin()
    assert {metrics.scale_drift for metrics in loop.training.metrics().values()} == {0.0}

    drift = [metrics.scale_drift for metrics in loop.run(0, 2).training.metrics().values()]

    assert all(one is not None and 0 < one < 1 for one in drift)


def test_batch_norms_freeze_when_it_is_time() -> None:
    loop = Loop(schedule=octavo.Schedule(freeze_batch_norm_at=1)).begin()
    loop.run(0, 1)
    before = loop.model.norm.running_mean.clone()
    loop.run(1, 3)
    assert torch.equal(loop.model.norm.running_mean, before)
    loop.training.end()

    loop.model.train()(**batch(0))

    assert not torch.equal(loop.model.norm.running_mean, before)


def test_without_quantizers_for_a_while() -> None:
    loop = Loop().begin()
    x = batch(3)["x"]
    rounded = loop.model.eval()(x)["output"]
    with loop.training.unquantized():
        plain = loop.model(x)["output"]

    assert torch.equal(plain, Net().eval()(x)["output"])
    assert torch.equal(loop.model(x)["output"], rounded)
    assert not torch.equal(plain, rounded)


def test_the_end_leaves_what_was_learned_in_an_ordinary_quantized_model(tmp_path: Path) -> None:
    schedule = octavo.Schedule(activations_from=100)
    loop = Loop(weight_scales="lsq", schedule=schedule).begin().run(0, 3)
    learned = states(loop.model)

    loop.training.end()

    assert all(torch.equal(q.amax, learned[name]) for name, q in tensor_quantizers(loop.model) if q.spec)
    assert all(enabled(loop.model, "input_quantizer")), "what the config asks for"
    assert not [name for name in loop.model.state_dict() if "octavo" in name or "shift" in name]
    octavo.save(loop.model, tmp_path / "saved")
    restored = octavo.restore(Net(), tmp_path / "saved").eval()
    x = batch(9)["x"]
    assert torch.equal(restored(x)["output"], loop.model.eval()(x)["output"])


def test_scales_that_are_still_learned_are_neither_saved_nor_exported(tmp_path: Path) -> None:
    loop = Loop(weight_scales="lsq").begin()
    message = r"scales of 3 quantizers are being learned \(first 'first\.weight_quantizer'\); end the training before"

    with pytest.raises(octavo.ModeError, match=message):
        octavo.save(loop.model, tmp_path / "saved")
    with pytest.raises(octavo.ModeError, match=message):
        octavo.finalize(loop.model, "unified_hf")


def test_scales_of_weights_that_are_elsewhere_cannot_be_recomputed() -> None:
    loop = Loop(weight_scales="recomputed").begin()
    loop.model.second.weight.data = torch.empty(0)

    with pytest.raises(
        octavo.TrainingError, match=r"second\.weight_quantizer has no values.*'held' or 'lsq'"
    ):
        loop.training.after_step(1)
    assert loop.training.metrics().keys() == {"first", "last"}


def test_an_optimizer_from_before() -> None:
    model = Net()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    training = octavo.QuantizedTraining(model, INT4_G16, weight_scales="lsq", quiet=True)

    with pytest.raises(
        octavo.TrainingError, match=r"lacks 3 learned scales \(first 'first\.weight_quantizer\.amax_shift'\)"
    ):
        training.check_optimizer(early)
    training.check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("preset", "ways", "message"),
    [
        (
            "MXFP4_DEFAULT_CFG",
            {"weight_scales": "lsq"},
            r"weight_scales='lsq', and no quantizer of this kind has",
        ),
        (
            "INT8_WEIGHT_ONLY_CFG",
            {"activation_scales": "pact"},
            r"activation_scales='pact', and no quantizer",
        ),
        (INT4_G16, {"weight_scales": "lqs"}, r"weight_scales='lqs'; expected one of .* Did you mean 'lsq'"),
        (INT4_G16, {"activation_scales": "recomputed"}, r"expected one of held, observed, lsq, pact"),
        (INT4_G16, {"exporter": "tensorrt_llm"}, r"tensorrt_llm checkpoints have no place for these formats"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_changes_nothing(
    preset: Any, ways: dict[str, Any], message: str
) -> None:
    model = Net()
    before = {name: type(module) for name, module in model.named_modules()}

    with pytest.raises(octavo.OctavoError, match=message):
        octavo.QuantizedTraining(model, preset, quiet=True, **ways)

    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not hasattr(model, "octavo_recipe")


def test_an_ended_training_does_not_begin_again() -> None:
    loop = Loop().begin()
    loop.training.end()
    loop.training.end()

    with pytest.raises(octavo.TrainingError, match="training of this model has ended"):
        loop.training.begin(0)
