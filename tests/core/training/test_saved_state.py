"""Checkpoints of a loop of one's own, here of one process; tests/end_to_end/test_shared_training.py has several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from helpers.training_models import Loop, Net

OPTIONS: dict[str, Any] = {"weight_scales": "lsq", "activation_scales": "observed"}


def test_a_resumed_run_has_the_weights_of_the_uninterrupted_one(tmp_path: Path) -> None:
    loop = Loop(**OPTIONS).begin().run(0, 2)
    octavo.save_training(tmp_path / "two", loop.model, loop.optimizer, 2)
    loop.run(2, 4)

    other = Loop(**OPTIONS)
    step = octavo.load_training(tmp_path / "two", other.model, other.optimizer)
    other.training.begin(step)
    other.run(step, 4)

    wanted, found = loop.model.state_dict(), other.model.state_dict()
    assert step == 2
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_the_files_are_safetensors_and_json(tmp_path: Path) -> None:
    model = Net()
    octavo.save_training(tmp_path / "new" / "one", model, torch.optim.SGD(model.parameters(), lr=0.1), 1)

    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == [
        "octavo_training.json", "one", "same_on_all_ranks.safetensors",
    ]  # fmt: skip


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
        model["b"].weight = model["a"].weight
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)

    model, optimizer = tied()
    model["a"](torch.ones(2, 4)).sum().backward()  # type: ignore[index]
    optimizer.step()
    octavo.save_training(tmp_path / "tied", model, optimizer, 1)
    other, another = tied()
    octavo.load_training(tmp_path / "tied", other, another)

    assert torch.equal(other["b"].weight, model["a"].weight)  # type: ignore[index]
    assert other["a"].weight is other["b"].weight  # type: ignore[index]
    state = another.state_dict()["state"][0]
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert torch.equal(state["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_the_last_one_is_that_of_the_highest_step(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert octavo.last_training(tmp_path) is None
    for step in (9, 10):
        octavo.save_training(tmp_path / f"step-{step}", model, optimizer, step)
    (tmp_path / ".step-11.partial").mkdir()
    (tmp_path / ".step-11.partial" / "octavo_training.json").write_text("{}")
    (tmp_path / "something else").mkdir()

    assert octavo.last_training(tmp_path) == tmp_path / "step-10"


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    octavo.save_training(tmp_path / "one", model, optimizer, 1)
    first, second = torch.nn.Linear(2, 2), torch.optim.SGD(model.first.parameters(), lr=0.1)

    with pytest.raises(octavo.CheckpointError, match="none holds no training state that can be read"):
        octavo.load_training(tmp_path / "none", model, optimizer)
    with pytest.raises(octavo.CheckpointError, match="one exists already; give a new folder"):
        octavo.save_training(tmp_path / "one", model, optimizer, 1)
    with pytest.raises(octavo.CheckpointError, match=r"(?s)one is of another model: .*Missing key.*weight"):
        octavo.load_training(tmp_path / "one", first, optimizer)
    with pytest.raises(
        octavo.CheckpointError, match=r"state of another optimizer than this SGD: .*parameter group"
    ):
        octavo.load_training(tmp_path / "one", model, second)
    facts = tmp_path / "one" / "octavo_training.json"
    for damaged in ("{", "[]", json.dumps({**json.loads(facts.read_text()), "version": 2}), '{"version": 1}'):
        facts.write_text(damaged)
        with pytest.raises(octavo.CheckpointError, match=r"octavo_training\.json is damaged|can be read"):
            octavo.load_training(tmp_path / "one", model, optimizer)


def test_damaged_tensors_and_settings_that_are_no_json(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    with pytest.raises(octavo.UnsupportedError, match="the optimizer has a setting that is neither a number"):
        octavo.save_training(tmp_path / "tensor", model, optimizer, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    octavo.save_training(tmp_path / "one", model, optimizer, 1)
    path = tmp_path / "one" / "same_on_all_ranks.safetensors"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(octavo.CheckpointError, match=r"same_on_all_ranks\.safetensors cannot be read"):
        octavo.load_training(tmp_path / "one", model, optimizer)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = Net()
    with pytest.raises(
        octavo.CheckpointError, match=r"rank 0 cannot write .*all ranks need a disk that they share"
    ):
        octavo.save_training(tmp_path / "file" / "one", model, torch.optim.SGD(model.parameters()), 1)
