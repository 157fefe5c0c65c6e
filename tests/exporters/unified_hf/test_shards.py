"""Shards and their index, and tied tensors: every tensor once, whatever file it is in."""

from __future__ import annotations

from pathlib import Path

import torch

import octavo
from helpers.exporters_models import (
    export,
    json_of,
    quantized,
    same,
    tensors_of,
    tokens,
)

KV = octavo.merge_configs(octavo.NVFP4_DEFAULT_CFG, octavo.FP8_KV_CFG)

INDEX = "model.safetensors.index.json"


def test_many_shards_hold_the_same_tensors_as_one(tmp_path: Path) -> None:
    model = quantized(KV)
    whole, parts = (
        export(model, tmp_path / "whole"),
        export(model, tmp_path / "parts", max_shard_bytes=50_000),
    )
    shards = sorted(path.name for path in parts.glob("*.safetensors"))
    expected, found = tensors_of(whole), tensors_of(parts)

    assert [path.name for path in whole.glob("*.safetensors*")] == ["model.safetensors"]
    assert len(shards) > 3
    assert shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in expected)
    index = json_of(parts / INDEX)["weight_map"]
    assert index.keys() == expected.keys()
    assert set(index.values()) == set(shards)


def test_many_shards_read_back(tmp_path: Path) -> None:
    model = quantized(KV)
    served = [
        octavo.load_quantized(export(model, tmp_path / str(size), max_shard_bytes=size))
        for size in (50_000, 10**9)
    ]

    with torch.no_grad():
        assert torch.equal(served[0](tokens()).logits, served[1](tokens()).logits)


def test_tied_tensors_are_written_once_under_their_first_name(tmp_path: Path) -> None:
    model = quantized("INT8_WEIGHT_ONLY_CFG", tie_word_embeddings=True)
    directory = export(model, tmp_path / "out")

    assert "lm_head.weight" not in tensors_of(directory)
    assert json_of(directory / "config.json")["quantization_config"]["ignore"] == [
        "lm_head",
        "model.embed_tokens",
    ]
    served = octavo.load_quantized(directory)
    assert served.get_output_embeddings().weight is served.get_input_embeddings().weight
    assert torch.equal(served.get_output_embeddings().weight, model.get_output_embeddings().weight)
