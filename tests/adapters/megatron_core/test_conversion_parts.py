"""Which entries of which checkpoint tensors each rank has, and models that have no counterpart; no rank runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.megatron_checkpoints import DECODER, MODELS
from octavo.adapters.megatron_core.conversion.fields import gpt_fields
from octavo.adapters.megatron_core.conversion.importing import read_part
from octavo.adapters.megatron_core.conversion.local import LocalTensor
from octavo.adapters.megatron_core.conversion.original import Original
from octavo.adapters.megatron_core.conversion.placing import put
from octavo.adapters.megatron_core.conversion.runs import Run, runs_of_rank
from octavo.adapters.megatron_core.conversion.shares import Share
from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor, Part
from octavo.core.errors import CheckpointError, ExportError, UnsupportedError
from octavo.core.model.shard_reader import ShardReader


def entries(sizes: list[int], groups: int, rank: int, ranks: int, padding: int = 0) -> list[int | None]:
    """Return the entries of all parts, numbered one after the other, that a rank has."""
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    return [
        None if run.part is None else starts[run.part] + run.start + offset
        for run in runs_of_rank(sizes, groups, rank, ranks, padding)
        for offset in range(run.length)
    ]


def test_query_groups_are_interleaved_and_divided() -> None:
    # Queries 0 to 7, keys 8 to 11, values 12 to 15, of two groups.
    assert entries([8, 4, 4], 2, 0, 2) == [0, 1, 2, 3, 8, 9, 12, 13]
    assert entries([8, 4, 4], 2, 1, 2) == [4, 5, 6, 7, 10, 11, 14, 15]


def test_more_ranks_than_query_groups_cut_a_group() -> None:
    ranks = [entries([8, 4, 4], 2, rank, 4) for rank in range(4)]
    assert ranks == [[0, 1, 2, 3], [8, 9, 12, 13], [4, 5, 6, 7], [10, 11, 14, 15]]


def test_each_rank_has_rows_of_gate_and_of_up() -> None:
    assert entries([4, 4], 2, 0, 2) == [0, 1, 4, 5]
    assert entries([4, 4], 2, 1, 2) == [2, 3, 6, 7]


def test_padding_comes_last() -> None:
    assert entries([5], 1, 1, 2, padding=3) == [4, None, None, None]
    assert runs_of_rank([5], 1, 1, 2, padding=3) == [Run(0, 4, 1), Run(None, 0, 3)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    ("division", "shapes", "groups"),
    [
        ("groups", [(16, 6), (8, 6), (8, 6)], 4),
        ("gated", [(8, 6), (8, 6)], 1),
        ("rows", [(8, 6)], 1),
        ("columns", [(6, 8)], 1),
        ("none", [(6, 8)], 1),
        ("vocabulary", [(7, 6)], 1),
    ],
)
def test_what_ranks_read_is_what_they_write_back(
    tmp_path: Path, division: Any, shapes: list[tuple[int, int]], groups: int, ranks: int
) -> None:
    names = [f"part{number}" for number in range(len(shapes))]
    generator = torch.Generator().manual_seed(0)
    stored = {
        name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)
    }
    save_file(
        {name: tensor.T.contiguous() for name, tensor in stored.items()}, tmp_path / "model.safetensors"
    )
    parts = tuple(Part(name, shape, 0, is_transposed=True) for name, shape in zip(names, shapes, strict=True))
    tensor = MegatronTensor("some.weight", parts, division, groups)
    back = [torch.full(shape, torch.nan) for shape in shapes]

    for rank in range(ranks):
        local = LocalTensor(nn.Parameter(torch.empty(local_shape(tensor, ranks))), rank, ranks)
        values = read_part(tensor, local, ShardReader(tmp_path), {name: name for name in names})
        assert values.shape == local.parameter.shape
        put(values, Share.of(values, rank, ranks), tensor, back)

    for part, expected in zip(back, stored.values(), strict=True):
        assert torch.equal(part, expected)


def local_shape(tensor: MegatronTensor, ranks: int) -> list[int]:
    rows = sum(part.shape[0] for part in tensor.parts)
    columns = tensor.parts[0].shape[1]
    if not tensor.is_divided:
        return [rows, columns]
    return [rows, columns // ranks] if tensor.dim == 1 else [-(-rows // ranks), columns]


def test_scales_of_blocks_follow_their_rows() -> None:
    parts = (Part("gate", (8, 4)), Part("up", (8, 4)))
    tensor = MegatronTensor("fc1.weight", parts, "gated")
    back: list[Tensor | None] = [torch.zeros(4, 1), torch.zeros(4, 1)]
    for rank in range(2):
        own = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) + 10 * rank
        put(own, Share.of(own, rank, 2), tensor, back, unit=2)
    assert [view.flatten().tolist() for view in back if view is not None] == [[1, 2, 11, 12], [3, 4, 13, 14]]


def test_a_scale_that_belongs_to_two_tensors_is_refused() -> None:
    tensor = MegatronTensor("fc1.weight", (Part("gate", (3, 4)), Part("up", (3, 4))), "gated")
    own = torch.ones(3, 2)
    with pytest.raises(ExportError, match=r"fc1\.weight has scales for 2 entries along dim 0 each"):
        put(own, Share.of(own), tensor, [None, None], unit=2)


def test_a_part_of_another_model_is_refused() -> None:
    tensor = MegatronTensor("fc2.weight", (Part("down", (6, 8)),), "columns")
    with pytest.raises(
        ExportError, match=r"fc2\.weight has 5 entries along dim 1 on each of 2 ranks, .* 8 in all"
    ):
        put(torch.ones(6, 5), Share.of(torch.ones(6, 5), 0, 2), tensor, [None])


def test_a_shorter_tensor_in_the_files_is_named(tmp_path: Path) -> None:
    save_file({"some.weight": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'some\.weight' has shape \[4, 2\], and entries 2 to 6 along dim 0"
    ):
        ShardReader(tmp_path).entries("some.weight", 0, 2, 4)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_tensor_of_a_known_architecture_has_a_place(tmp_path: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[kind]))
    model.save_pretrained(tmp_path)
    original = Original.of(tmp_path)

    parts = [part for tensor in original.tensors.values() for part in tensor.parts]

    stored = set(ShardReader(tmp_path).names())
    assert stored <= {part.name for part in parts}
    assert len({(part.name, part.start) for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {"head_dim": 16}, r"gemma2 has no counterpart in Megatron-core .* qwen3_moe"),
        ("llama", {"attention_bias": True}, r"a llama with attention_bias=True is not imported"),
        ("llama", {"hidden_act": "gelu"}, r"a llama with hidden_act='gelu' is not imported"),
        ("mistral", {"sliding_window": 8}, r"a mistral with sliding_window=8"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            r"Megatron-core's rotary positions are plain, or Llama 3's .*'linear'",
        ),
    ],
)
def test_variants_without_a_counterpart_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    config = AutoConfig.for_model(kind, **{**DECODER, **changes})
    with pytest.raises(UnsupportedError, match=message):
        gpt_fields(config)


def test_the_rotary_positions_of_llama_3_are_known() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = gpt_fields(AutoConfig.for_model("llama", **{**DECODER, "rope_parameters": rope})).gpt
    assert (found["rope_scaling"], found["rope_scaling_factor"], found["rotary_base"]) == (
        True,
        32.0,
        500000.0,
    )


def test_layers_without_a_place_are_named(tmp_path: Path) -> None:
    sizes = {**DECODER, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2_moe", **sizes))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedError, match=r"model\.layers\.0 has moe\.shared_gate, for which Megatron-core"
    ):
        Original.of(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no config\.json; give the folder of a Hugging Face model"
    ):
        Original.of(tmp_path)
