"""Incomplete and damaged sets of ranks are refused, and what is wrong is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import octavo
from helpers.trtllm_checkpoints import config_of, tensors_of, write_one_rank
from octavo.core.errors import CheckpointError
from octavo.exporters.tensorrt_llm.rank_reader import RankReader

NORM, PROJ = "transformer.layers.0.input_layernorm.weight", "transformer.layers.0.mlp.proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of four ranks, two in each of two stages, without manifests, as others write it."""
    config = config_of("mqa", "FP8")
    one = write_one_rank(tmp_path / "one", config, tensors_of(config))
    octavo.reshard_tensorrt_llm(one, tmp_path / "four", 2, 2)
    for path in (tmp_path / "four").glob("octavo_*"):
        path.unlink()
    return tmp_path / "four"


def read_all(folder: Path) -> None:
    reader = RankReader(folder)
    for name in reader.names():
        reader.tensor(name)


def change(folder: Path, rank: int, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"rank{rank}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_all(folder)


def test_sound_ranks_are_read(folder: Path) -> None:
    read_all(folder)


def test_a_rank_is_missing(folder: Path) -> None:
    (folder / "rank2.safetensors").unlink()
    refused(
        folder,
        "a file for each of 4 ranks that config.json names; missing: rank2.safetensors; too many: none",
    )


def test_there_is_a_rank_too_many(folder: Path) -> None:
    (folder / "rank4.safetensors").write_bytes((folder / "rank3.safetensors").read_bytes())
    refused(folder, "missing: none; too many: rank4.safetensors")


def test_a_file_is_torn(folder: Path) -> None:
    path = folder / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "rank1.safetensors cannot be read")


def test_the_mapping_is_that_of_other_files(folder: Path) -> None:
    change_config(folder, mapping={"world_size": 4, "tp_size": 4, "pp_size": 1})
    refused(folder, "rank 0 and rank 2 must have the same tensors; only one has lm_head.weight, transformer.")


def test_the_config_says_more_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=6)
    refused(folder, "has no tensor of layers 2, 5; config.json says there are 6 in all")


def test_the_config_says_fewer_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    refused(folder, "of stage 0 is in layer 1; config.json says that each of 2 stages has 1 layers")


def test_the_config_says_layers_that_stages_cannot_have(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)
    refused(folder, "config.json says 3 layers on 2 equal stages")


def test_the_config_is_none(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json must hold a JSON object, found list")


def test_two_checkpoints_in_a_folder(tmp_path: Path) -> None:
    for part in ("encoder", "decoder"):
        write_one_rank(tmp_path / part, {}, {"x": torch.zeros(1)})
    refused(tmp_path, "holds checkpoints in encoder and decoder; give one of these")


def test_a_rank_lacks_a_tensor(folder: Path) -> None:
    change(folder, 1, lambda tensors: tensors.pop(PROJ))
    refused(folder, f"rank 0 and rank 1 must have the same tensors; only one has {PROJ}")


def test_a_tensor_is_on_the_wrong_stage(folder: Path) -> None:
    for rank in (0, 1):
        change(folder, rank, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(1)}))
    refused(folder, "tensor 'lm_head.weight' is on stage 0 of 2; it belongs on stage 1")


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (torch.zeros(32, 32).bfloat16(), "[('float8_e4m3fn', [32, 32]), ('bfloat16', [32, 32])]"),
        (torch.zeros(32, 16).to(torch.float8_e4m3fn), "('float8_e4m3fn', [32, 16])"),
    ],
)
def test_parts_that_do_not_fit_together(folder: Path, part: torch.Tensor, found: str) -> None:
    change(folder, 1, lambda tensors: tensors.update({PROJ: part}))
    refused(
        folder,
        f"tensor {PROJ!r} of rank 0-1: tensor {PROJ!r} must have one dtype and shape on 2 ranks, found",
    )
    refused(folder, found)


@pytest.mark.parametrize("name", [NORM, "transformer.layers.0.mlp.fc.weights_scaling_factor"])
def test_copies_that_differ(folder: Path, name: str) -> None:
    change(folder, 3, lambda tensors: tensors[name].view(torch.uint8).view(-1)[0].add_(1))
    refused(folder, f"tensor {name!r} of rank 2-3")
    refused(
        folder, "must be the same on 2 ranks, and that of the first differs from that of number 1 after it"
    )


def test_copies_of_a_repeated_head_that_differ(folder: Path) -> None:
    """The one key/value head is on both ranks of a stage."""
    name = "transformer.layers.0.attention.qkv.weight"
    change(folder, 1, lambda tensors: tensors[name].view(torch.uint8)[-1, 0].bitwise_xor_(1))
    refused(folder, f"tensor {name!r} must be the same on 2 ranks")


def test_tensors_are_held_to_manifests(tmp_path: Path) -> None:
    config = config_of("llama", None)
    one = write_one_rank(tmp_path / "one", config, tensors_of(config))
    octavo.reshard_tensorrt_llm(one, tmp_path / "two", 2)
    change(tmp_path / "two", 1, lambda tensors: tensors[PROJ].view(torch.uint8)[0, 0].bitwise_xor_(1))
    refused(tmp_path / "two", f"rank1.safetensors: tensor {PROJ!r} is damaged: its SHA-256 is")
    change(tmp_path / "two", 1, lambda tensors: tensors.pop(PROJ))
    refused(tmp_path / "two", f"lacks tensors of its octavo_manifest.rank1.json: {PROJ}")


def test_a_tensor_that_is_not_there(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no tensor 'lm_head\.weights'\. Did you mean 'lm_head\.weight'"
    ):
        RankReader(folder).tensor("lm_head.weights")
