"""Rows that INT4 checkpoints append to the vocabulary, where the head is the token embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import octavo
from helpers.exporters_models import json_of
from helpers.tensorrt_llm_models import DECODER, exported, tiny

VOCABULARY = {"vocab_size": 100, "tie_word_embeddings": True}


@pytest.mark.parametrize(("model_type", "has_head"), [("llama", True), ("gemma", False)])
def test_a_tied_head_gets_the_rows_of_the_embedding(model_type: str, has_head: bool, tmp_path: Path) -> None:
    model = tiny(model_type, **{**DECODER, **VOCABULARY})
    octavo.quantize(model, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", quiet=True)

    tensors, config = exported(model, tmp_path / "one", target="trtllm")
    octavo.reshard_tensorrt_llm(tmp_path / "one", tmp_path / "two", tp_size=1, pp_size=2)
    octavo.reshard_tensorrt_llm(tmp_path / "two", tmp_path / "back")

    padded = torch.cat(
        [model.get_input_embeddings().weight.detach(), torch.zeros(28, 128, dtype=torch.bfloat16)]
    )
    assert config["vocab_size"] == 128
    assert torch.equal(tensors["transformer.vocab_embedding.weight"], padded)
    assert ("lm_head.weight" in tensors) == has_head
    assert not has_head or torch.equal(tensors["lm_head.weight"], padded)
    assert json_of(tmp_path / "back" / "config.json")["vocab_size"] == 128
    assert load_file(tmp_path / "back" / "rank0.safetensors").keys() >= tensors.keys()
    assert octavo.verify_checkpoint(tmp_path / "one", "trtllm") == []


def test_a_quantized_head_that_is_the_embedding_is_refused_before() -> None:
    config = octavo.merge_configs("INT4_BLOCKWISE_WEIGHT_ONLY_CFG")
    entry = next(e for e in config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer")
    config["quant_cfg"].append({**entry, "quantizer_name": "lm_head.weight_quantizer"})
    model = tiny("llama", **{**DECODER, **VOCABULARY})

    tied = r"lm_head\.weight is tied to model\.embed_tokens\.weight: quantizing one side would untie them\. Exclude it"
    with pytest.raises(octavo.PlanError, match=tied):
        octavo.quantize(model, config, quiet=True)
