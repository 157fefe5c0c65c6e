"""A transformers decoder with quantized layers and attention: compiled and exported, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import octavo
from helpers.tiny import tiny_llama, token_batches

IDS = token_batches()[0]


@pytest.fixture(scope="module")
def decoder() -> Iterator[nn.Module]:
    config = octavo.merge_configs("NVFP4_DEFAULT_CFG", "FP8_KV_CFG")
    yield octavo.quantize(tiny_llama(num_hidden_layers=1), config, token_batches(), quiet=True)
    torch._dynamo.reset()


@torch.no_grad()
def test_compiled(decoder: nn.Module) -> None:
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    found, expected = (model(input_ids=IDS, use_cache=False).logits for model in (compiled, decoder))

    assert torch.equal(found, expected)


def test_exported(decoder: nn.Module) -> None:
    arguments = {"input_ids": IDS, "use_cache": False}
    exported = torch.export.export(decoder, (), arguments)
    names = [str(node.target) for node in exported.graph.nodes]

    assert names.count("octavo.fake_quantized_linear.default") == 7
    assert names.count("octavo.fake_quantize.default") == 2  # keys and values
    assert torch.equal(exported.module()(**arguments).logits, decoder(**arguments).logits)
