"""A student that learns from what it was quantized from, and from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.tiny import tiny_llama, token_batches

INT4 = octavo.with_block_size(octavo.INT4_BLOCKWISE_WEIGHT_ONLY_CFG, 32)
TOKENS = token_batches(2)


@pytest.fixture
def original() -> nn.Module:
    return tiny_llama()


@pytest.fixture
def student() -> nn.Module:
    return octavo.quantize(tiny_llama(), INT4, quiet=True)


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def train(student: nn.Module, distillation: octavo.Distillation, steps: int = 20) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 3e-5)
    losses = []
    for step in range(steps):
        loss = distillation.loss(student(TOKENS[step % len(TOKENS)]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_the_teacher_is_the_original(student: nn.Module, original: nn.Module) -> None:
    distillation = octavo.distill(student)

    assert torch.equal(logits_of(distillation.teacher, TOKENS[0]), logits_of(original, TOKENS[0]))


def test_what_does_not_train_is_shared(student: nn.Module, original: nn.Module) -> None:
    student.model.embed_tokens.weight.requires_grad_(False)

    teacher = octavo.distill(student).teacher

    ours = dict(student.named_parameters())
    shared = {name for name, p in teacher.named_parameters() if p is ours[name]}
    assert shared == {name for name, p in ours.items() if not p.requires_grad}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for name, p in ours.items() if name != "model.embed_tokens.weight")


def test_the_student_learns_and_the_teacher_stays(student: nn.Module, original: nn.Module) -> None:
    distillation = octavo.distill(student)

    losses = train(student, distillation)

    assert losses[-1] < losses[0] / 2
    assert torch.equal(logits_of(distillation.teacher, TOKENS[0]), logits_of(original, TOKENS[0]))


def test_another_teacher(student: nn.Module) -> None:
    other = tiny_llama(num_hidden_layers=1).train()

    losses = train(student, octavo.distill(student, teacher=other))

    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in other.parameters())


def test_the_loss_is_the_mean_divergence(student: nn.Module, original: nn.Module) -> None:
    distillation = octavo.distill(student, {"temperature": 2.0})

    with torch.no_grad():
        loss = distillation.loss(student(TOKENS[0]))

    p = (logits_of(original, TOKENS[0]).double() / 2).log_softmax(-1)
    q = (logits_of(student, TOKENS[0]).double() / 2).log_softmax(-1)
    torch.testing.assert_close(
        loss.double(), 4 * (p.exp() * (p - q)).sum(-1).mean(), rtol=0, atol=1e-6
    )  # of fp32 logarithms


def test_tokens_that_do_not_count(student: nn.Module) -> None:
    """A mask of padding, and labels of −100, leave the same tokens out."""
    distillation = octavo.distill(student)
    mask = torch.ones_like(TOKENS[0])
    mask[:, 6:] = 0
    labels = TOKENS[0].masked_fill(mask == 0, -100)

    short = distillation.loss(student(input_ids=TOKENS[0][:, :6]))
    masked = distillation.loss(student(input_ids=TOKENS[0], attention_mask=mask))
    labelled = distillation.loss(student(input_ids=TOKENS[0]), labels)
    five = distillation.loss(student(input_ids=TOKENS[0][:, :6]), TOKENS[0][:, :6])

    torch.testing.assert_close(masked, short, rtol=1e-4, atol=0)
    torch.testing.assert_close(labelled, five, rtol=1e-4, atol=0)


def test_accumulated_batches_are_one(student: nn.Module) -> None:
    """A Trainer divides by the tokens of all batches before one step."""
    distillation = octavo.distill(student)
    both = torch.cat(list(TOKENS[:2]))
    count = both[:, 1:].numel()

    whole = distillation.loss(student(both), both)
    parts = [distillation.loss(student(tokens), tokens, num_items_in_batch=count) for tokens in TOKENS[:2]]

    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)


HIDDEN = {"layers": {"model.layers.0": "model.layers.0", "model.layers.1": "model.layers.1"}}


@pytest.mark.parametrize("kind", ["mse", "relative", "cosine"])
def test_hidden_states(student: nn.Module, original: nn.Module, kind: str) -> None:
    config = {"logits_weight": 0, "hidden": [{**HIDDEN, "kind": kind, "weight": 0.5}]}
    distillation = octavo.distill(student, config)

    loss = distillation.loss(student(TOKENS[0]))

    found, wanted = (states(model, TOKENS[0]) for model in (student, original))
    expected = torch.stack([distance(kind, a, b) for a, b in zip(found, wanted, strict=True)]).mean() / 2
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=0)
    assert list(distillation.parts) == ["hidden0"]


def states(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    caught: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda m, i, o: caught.append(o)) for layer in model.model.layers]
    logits_of(model, tokens)
    for handle in handles:
        handle.remove()
    return [state.double() for state in caught]


def distance(kind: str, a: Tensor, b: Tensor) -> Tensor:
    if kind == "cosine":
        return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
    return ((a - b) ** 2).mean() / (1 if kind == "mse" else (b**2).mean())


def test_matched_losses_are_of_one_size(student: nn.Module) -> None:
    distillation = octavo.distill(student, {"balance": "match", "hidden": [{**HIDDEN, "weight": 0.25}]})

    loss = distillation.loss(student(TOKENS[0]))

    torch.testing.assert_close(loss.detach(), distillation.parts["logits"] * 1.25, rtol=1e-5, atol=0)


def test_the_labels_count_when_asked(student: nn.Module) -> None:
    distillation = octavo.distill(student, {"logits_weight": 0, "labels_weight": 1})

    loss = distillation.loss(student(input_ids=TOKENS[0]), TOKENS[0])

    own = student(input_ids=TOKENS[0], labels=TOKENS[0]).loss
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=0)


def test_the_student_alone_again(student: nn.Module, tmp_path: Path) -> None:
    distillation = octavo.distill(student)
    train(student, distillation, 2)
    trained = logits_of(student, TOKENS[0])

    assert octavo.export_student(student) is student

    assert [record.mode for record in octavo.history(student)] == ["quantize"]
    assert not student._forward_pre_hooks
    assert torch.equal(logits_of(student, TOKENS[0]), trained)
    octavo.export_hf_checkpoint(student, export_dir=tmp_path / "out", quiet=True)


def test_saved_and_restored(student: nn.Module, tmp_path: Path) -> None:
    train(student, octavo.distill(student), 2)
    octavo.save(student, tmp_path / "saved")

    restored = octavo.restore(tiny_llama(), tmp_path / "saved")

    assert torch.equal(logits_of(restored, TOKENS[0]), logits_of(student, TOKENS[0]))
    with pytest.raises(
        octavo.ModeError, match="distilled before, and its original weights are gone; give teacher="
    ):
        octavo.distill(restored)
    octavo.distill(restored, teacher=tiny_llama())


class TestTeacherLogits:
    def test_recorded_logits_teach_the_same(self, original: nn.Module, tmp_path: Path) -> None:
        logits = octavo.TeacherLogits.record(original, TOKENS, tmp_path / "logits", k=64, temperature=2.0)
        running, reading = (octavo.quantize(tiny_llama(), INT4, quiet=True) for _ in range(2))

        first = train(running, octavo.distill(running, {"temperature": 2.0}), 4)
        second = train(reading, octavo.distill(reading, {"temperature": 2.0}, logits), 4)

        assert second == pytest.approx(first, rel=1e-4)
        logits.check_teacher(original)

    def test_samples_come_in_any_order(self, original: nn.Module, tmp_path: Path) -> None:
        logits = octavo.TeacherLogits.record(original, TOKENS, tmp_path / "logits", k=3)
        mixed = torch.stack([TOKENS[1][0], TOKENS[0][1]])

        found = octavo.TeacherLogits(tmp_path / "logits").of(mixed)

        largest = logits_of(original, mixed).log_softmax(-1).topk(3, -1)
        torch.testing.assert_close(found.log_probability, largest.values)
        assert torch.equal(found.tokens.long(), largest.indices)
        assert logits.k == 3

    def test_what_was_not_recorded(self, original: nn.Module, student: nn.Module, tmp_path: Path) -> None:
        logits = octavo.TeacherLogits.record(original, TOKENS[:1], tmp_path / "logits")
        other = TOKENS[0].flip(1)
        distillation = octavo.distill(student, teacher=logits)

        with pytest.raises(
            octavo.CheckpointError, match=rf"sample of {other.shape[1]} tokens \({other[0, 0]}, .* among the"
        ):
            distillation.loss(student(other))

    def test_another_teacher(self, original: nn.Module, tmp_path: Path) -> None:
        logits = octavo.TeacherLogits.record(original, TOKENS[:1], tmp_path / "logits")
        with torch.no_grad():
            original.lm_head.weight[0, 0] += 1

        with pytest.raises(
            octavo.CheckpointError, match="of another teacher: values of its weights differ; record"
        ):
            logits.check_teacher(original)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"temperature": 2.0}, "recorded with temperature 1.0, found 2.0"),
            ({"hidden": [HIDDEN]}, "hidden losses need a teacher that runs, found recorded logits"),
        ],
    )
    def test_what_they_cannot_teach(
        self, original: nn.Module, student: nn.Module, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        logits = octavo.TeacherLogits.record(original, TOKENS[:1], tmp_path / "logits")

        with pytest.raises(octavo.ConfigError, match=message):
            octavo.distill(student, config, logits)

        assert not student._forward_pre_hooks
        assert [record.mode for record in octavo.history(student)] == ["quantize"]

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(
            octavo.CheckpointError, match=r"has no octavo_teacher\.json; TeacherLogits\.record writes"
        ):
            octavo.TeacherLogits(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temprature": 1}, "temprature: .*found 1; fields are temperature, logits_weight"),
        ({"temperature": 0}, "temperature: .* greater than 0, found 0"),
        ({"logits_weight": 0}, "no loss is left"),
        ({"balance": "match", "logits_weight": 0, "labels_weight": 1}, "found logits_weight=0"),
        (
            {"hidden": [{"layers": {"model.layers.9": "model.layers.0"}}]},
            r"the student has no module 'model.layers.9'. Did you mean 'model.layers",
        ),
        (
            {"hidden": [{"layers": {"model.layers.0": "model.layer.0"}}]},
            "the teacher has no module 'model.layer.0'",
        ),
    ],
)
def test_a_wrong_config(student: nn.Module, config: dict[str, Any], message: str) -> None:
    with pytest.raises(octavo.ConfigError, match=message):
        octavo.distill(student, config)

    assert not student._forward_pre_hooks
    assert [record.mode for record in octavo.history(student)] == ["quantize"]


def test_no_teacher() -> None:
    with pytest.raises(octavo.ModeError, match=r"missing teacher: the model is not quantized.*give teacher="):
        octavo.distill(tiny_llama())


def test_weights_that_calibration_moved() -> None:
    config = {**INT4, "algorithm": "gptq"}
    student = octavo.quantize(tiny_llama(), config, lambda m: m(TOKENS[0]), quiet=True)

    with pytest.raises(octavo.ModeError, match="missing teacher: gptq changed the weights"):
        octavo.distill(student)


def test_folded_weights(student: nn.Module) -> None:
    octavo.fold_weight(student)

    with pytest.raises(octavo.ModeError, match="weights are folded"):
        octavo.distill(student)


def test_twice(student: nn.Module) -> None:
    octavo.distill(student)

    with pytest.raises(octavo.ModeError, match=r"distilled already; octavo\.export_student ends that"):
        octavo.distill(student)


def test_the_student_as_teacher(student: nn.Module) -> None:
    with pytest.raises(octavo.ModeError, match="the teacher is the student itself"):
        octavo.distill(student, teacher=student)


def test_a_loss_without_a_pass(student: nn.Module) -> None:
    distillation = octavo.distill(student)
    outputs = student(TOKENS[0])
    distillation.loss(outputs)

    with pytest.raises(octavo.ModeError, match="the student did not run since the last loss"):
        distillation.loss(outputs)


def test_other_widths(student: nn.Module) -> None:
    teacher = tiny_llama(hidden_size=64)
    distillation = octavo.distill(student, {"hidden": [HIDDEN]}, teacher)

    with pytest.raises(
        octavo.ShapeError, match=r"layers.0 of the student returns \(.*128\), .* teacher \(.*64\)"
    ):
        distillation.loss(student(TOKENS[0]))


def test_missing_labels(student: nn.Module) -> None:
    distillation = octavo.distill(student, {"labels_weight": 1})

    with pytest.raises(octavo.ConfigError, match="labels_weight needs labels, found none"):
        distillation.loss(student(TOKENS[0]))


def test_nothing_to_end(student: nn.Module) -> None:
    with pytest.raises(octavo.ModeError, match=r"not being distilled; call octavo\.distill first"):
        octavo.export_student(student)
