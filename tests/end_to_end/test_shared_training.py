"""Training by several ranks, FSDP2 and DDP: what one process computes, resumed bit for bit, exported whole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.launcher import run_on_ranks, run_on_two_ranks
from helpers.shared_training import (
    GPTQ,
    INT4_INT8,
    PERCENTILE,
    Stack,
    calibration,
    described,
    input_statistics,
    trained_alone,
)
from octavo.core.modules import tensor_quantizers

KINDS = ["fsdp2", "ddp"]

pytestmark = pytest.mark.launcher


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run of which a rank was killed, and the seconds after which all had ended."""
    folder, start = tmp_path_factory.mktemp("killed"), time.monotonic()
    run_on_two_ranks("killed_training", folder, status=1)
    return folder, time.monotonic() - start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path, killed: tuple[Path, float]) -> Any:
    return run_on_two_ranks("shared_training", folder, str(killed[0]))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_on_ranks(4, "shared_training", tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return trained_alone(50, weight_scales="lsq", activation_scales="observed")[0]


def states_alone(config: Any) -> dict[str, list[float]]:
    model = octavo.quantize(Stack(), config, calibration(), quiet=True)
    return {name: q.amax.flatten().tolist() for name, q in tensor_quantizers(model) if q.named_state()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_and_four_ranks_train_as_one_process_does(
    two: Any, four: Any, alone: list[float], kind: str
) -> None:
    for found in (two[kind], four[kind]):
        assert len(found) == 50
        assert found[0] == pytest.approx(alone[0], rel=1e-6)
        assert found[-1] == pytest.approx(alone[-1], rel=5e-3)
    assert sum(alone[-8:]) < 0.8 * sum(alone[:8]), "something was learned"


def test_parts_of_the_data_and_of_weights_calibrate_as_all_of_them(two: Any) -> None:
    largest, clipped = states_alone(INT4_INT8), states_alone(PERCENTILE)

    assert len(largest) == 10
    assert two["shard first"]["states"] == largest
    assert two["replicated"] == {f"module.{name}": value for name, value in clipped.items()}, "histograms"
    assert clipped != largest


def test_sums_over_inputs_are_those_of_all_ranks(two: Any) -> None:
    first, second = two["inputs"]
    wanted = described(input_statistics())

    assert first == second
    for name in ("amax", "block_amax_counts"):
        assert first[name] == wanted[name], "exact"
    for name in ("abs_sum", "square_sum", "gram"):
        assert first[name] == pytest.approx(wanted[name], rel=1e-6, abs=1e-5)
    tokens, batches, seen = wanted["counts"]
    assert first["counts"] == [tokens, 2 * batches, seen]
    held = torch.tensor(first["held"]).view(-1, 32)
    everything = torch.cat(calibration()).double()
    assert 1 < len(held) <= 6
    assert all(any(torch.equal(token, one) for one in everything) for token in held.double())


def test_weights_that_calibration_changes_are_the_same_on_every_rank(two: Any) -> None:
    first, second = two["gptq"]
    alone = octavo.quantize(Stack(), GPTQ, calibration(), quiet=True)
    before = Stack().state_dict()

    assert first == second
    for name, weight in alone.named_parameters():
        found = torch.tensor(first[name]).view(weight.shape)
        assert ((found - weight).abs() < 1e-5).float().mean() > 0.95, "but for ties, the same codes"
        assert name.endswith("bias") or not torch.equal(found, before[name])


def test_quantizing_after_sharding_keeps_the_wrapper_and_can_be_undone(two: Any) -> None:
    found = two["shard first"]

    assert found["wrapped"], "unshard() and reshard() are there"
    assert found["rounds"]
    assert found["same classes"]
    assert found["same output"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(two: Any, kind: str) -> None:
    found = two["resumed"][kind]

    assert found["step"] == 3
    assert found["losses"], "the losses of each step, to the last bit"
    assert found["different"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_resumed_is_refused(two: Any, folder: Path, kind: str) -> None:
    found = two["resumed"][kind]

    assert "step-3 exists already; give a new folder" in found["exists"]
    assert 'weight_scales is "lsq" there and "recomputed" here' in found["recipe"]
    assert "step-3 was trained with quantizers, and the model is without quantizers" in found["plain"]
    model = Stack()
    with pytest.raises(octavo.CheckpointError, match="was saved by 2 ranks, and there are 1 now"):
        octavo.load_training(folder / kind / "step-3", model, torch.optim.AdamW(model.parameters()))


def test_a_killed_rank_ends_the_others_and_leaves_a_whole_checkpoint(
    two: Any, killed: tuple[Path, float]
) -> None:
    place, seconds = killed

    assert seconds < 60
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("step")) == [
        "step-2",
        "step-4",
    ]
    assert two["killed"] == {"step": 4, "losses": True, "different": []}


def test_what_ranks_cannot_do_together_is_refused(two: Any) -> None:
    found = two["refusals"]

    assert "'blocks.0.up.weight' is a part of what FullyShardedDataParallel" in found["FSDP1"]
    assert "has none of the 10 parameters that fully_shard divided" in found["optimizer"]
    late = "wrapped the model already, so that their gradients would stay apart"
    assert (
        f"'lsq' makes scales parameters, and FSDP2 (first 'blocks.0.up.weight') has {late}"
        in found["learned late"]
    )
    assert f"parameters, and DistributedDataParallel has {late}" in found["learned late, DDP"]
    assert "the algorithm 'gptq' needs whole weights, and 10 parameters are sharded" in found["gptq"]
    assert "save the model before it is sharded" in found["save"]


def test_a_loss_that_is_not_finite_is_told_without_the_other_ranks(two: Any) -> None:
    found = two["not finite"]

    assert "its weights, which ranks have parts of, are finite here" in found["input"]
    assert "first parameter with NaN or infinite values is 'stack.head.bias'" in found["weight"]


def test_rank_0_writes_what_one_process_would(two: Any, folder: Path) -> None:
    sharded, alone = (load_file(folder / name / "model.safetensors") for name in ("sharded", "alone"))

    assert two["exported"]["tensors"] == [len(alone)] * 2
    assert [name for name in alone if not torch.equal(alone[name], sharded[name])] == []
    assert sharded.keys() == alone.keys()
    weights = [
        row["weight"] for row in json.loads((folder / "sharded" / "report.json").read_text())["weights"]
    ]
    assert len(weights) == 5


def test_where_rank_0_cannot_write_every_rank_says_so(two: Any) -> None:
    first, second = two["exported"]["tried"]

    assert "file is a file; give a folder" in first
    assert second == "rank 0 could not write the checkpoint; its message says why"
