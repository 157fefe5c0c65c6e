"""Training under ZeRO-3 on two real ranks: what one process computes, resumed bit for bit, exported whole."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.launcher import run_on_two_ranks
from helpers.shared_training import INT4_INT8, Stack, calibration, trained_alone
from octavo.core.modules import tensor_quantizers

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero3")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Any:
    return run_on_two_ranks("zero3_training", folder)


def test_divided_weights_calibrate_as_whole_ones(outcome: Any) -> None:
    model = octavo.quantize(Stack(), INT4_INT8, calibration(), quiet=True)

    assert outcome["held"] == [0] * 10, "nothing is here outside of the forward pass"
    assert outcome["states"] == {
        name: q.amax.flatten().tolist() for name, q in tensor_quantizers(model) if q.named_state()
    }


def test_two_ranks_train_as_one_process_does(outcome: Any) -> None:
    alone, _ = trained_alone(50, weight_scales="recomputed", activation_scales="observed")

    assert outcome["losses"][0] == pytest.approx(alone[0], rel=1e-6)
    assert outcome["losses"][-1] == pytest.approx(alone[-1], rel=5e-3)


def test_a_resumed_run_is_the_uninterrupted_one(outcome: Any) -> None:
    assert outcome["resumed"]["losses"], "the losses of each step, to the last bit"
    assert outcome["resumed"]["states"]


def test_rank_0_writes_what_one_process_would(outcome: Any, folder: Path) -> None:
    sharded, alone = (load_file(folder / name / "model.safetensors") for name in ("sharded", "alone"))

    assert outcome["tensors"] == [len(alone)] * 2
    assert [name for name in alone if not torch.equal(alone[name], sharded[name])] == []
    assert sharded.keys() == alone.keys()


def test_what_zero3_cannot_do_is_refused(outcome: Any) -> None:
    found = outcome["refusals"]

    assert "the algorithm 'gptq' needs whole weights, and 10 parameters are sharded" in found["gptq"]
    for name, doing in (("learned", "weight_scales='lsq'"), ("learned late", "learning scales")):
        assert f"{doing}: ZeRO-3 holds this model (first 'blocks.0.up.weight')" in found[name]
    assert (
        "10 parameters (first 'blocks.0.up.weight') are divided by DeepSpeed" in outcome["resumed"]["foreign"]
    )


def test_a_weight_that_nobody_gathered_is_an_error(outcome: Any) -> None:
    assert (
        "blocks.0.up.weight [48, 32] is divided among ranks (FSDP2, ZeRO-3), and was read"
        in outcome["not_gathered"]
    )
