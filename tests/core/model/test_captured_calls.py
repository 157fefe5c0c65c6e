"""The captured calls of each block, run block by block, give what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from helpers.calibration_snapshot import same_bits, snapshot
from helpers.tiny import tiny_llama, token_batches
from octavo.core.errors import CalibrationError
from octavo.core.model.blocks import InMemoryBlocks
from octavo.core.plugins import plugins

IDS = token_batches(1)[0]
MASK = torch.ones_like(IDS)
MASK[0, -5:] = 0
BATCHES: dict[str, dict[str, Any]] = {
    "without a cache": {"input_ids": IDS, "use_cache": False},
    "padded, without a cache": {"input_ids": IDS, "attention_mask": MASK, "use_cache": False},
    "as users give them": {"input_ids": IDS},
    "padded": {"input_ids": IDS, "attention_mask": MASK},
}
CASES = [
    ("sdpa", "without a cache"),
    ("eager", "without a cache"),
    ("sdpa", "padded, without a cache"),
    ("eager", "as users give them"),
    ("sdpa", "padded"),
]


def source_of(model: nn.Module) -> InMemoryBlocks:
    return InMemoryBlocks(model, plugins().describe_model(model))


@torch.no_grad()
def replayed(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Run the blocks one after the other, each on what the one before returned."""
    source = source_of(model)
    hidden = None
    for block in source.blocks():
        if not block.name:
            continue
        (call,) = source.captured_calls(block, [batch])
        if hidden is not None:
            assert same_bits(call.args[0], hidden), "a block receives what the one before it returned"
        with source.materialized(block) as module:
            hidden = module(*call.args, **call.kwargs)
    assert hidden is not None
    logits: Tensor = model.lm_head(model.model.norm(hidden))  # type: ignore[operator, union-attr]
    return logits


@pytest.mark.parametrize("presets", [None, "FP8_DEFAULT_CFG+FP8_KV_CFG"])
@pytest.mark.parametrize(("attention", "kind"), CASES)
def test_blocks_run_one_by_one_give_the_models_logits(attention: str, kind: str, presets: str | None) -> None:
    model = tiny_llama(attn_implementation=attention)
    if presets is not None:
        octavo.quantize(model, octavo.merge_configs(*presets.split("+")), [IDS], quiet=True)
    with torch.no_grad():
        expected = model(**BATCHES[kind]).logits

    assert same_bits(replayed(model, BATCHES[kind]), expected)


@torch.no_grad()
def test_there_is_one_call_for_each_batch_in_order() -> None:
    model = tiny_llama()
    batches = [{"input_ids": ids, "use_cache": False} for ids in token_batches(3)]
    source = source_of(model)
    first, second, _ = source.blocks()

    calls = [source.captured_calls(block, batches) for block in (first, second)]

    assert [len(of_block) for of_block in calls] == [3, 3]
    for batch, before, after in zip(batches, *calls, strict=True):
        assert same_bits(before.args[0], model.model.embed_tokens(batch["input_ids"]))  # type: ignore[union-attr, operator]
        assert same_bits(after.args[0], first.module(*before.args, **before.kwargs))


def test_the_rest_is_called_with_what_the_model_is_called_with() -> None:
    model = tiny_llama()
    source = source_of(model)
    *_, rest = source.blocks()

    (call,) = source.captured_calls(rest, [{"input_ids": IDS, "use_cache": False}])

    assert call.args == ()
    assert call.kwargs.keys() == {"input_ids", "use_cache"}
    assert call.kwargs["input_ids"] is IDS


def failing(model: nn.Module) -> None:
    model(IDS)
    raise ValueError("broken data")


@pytest.mark.parametrize(("loop", "error"), [([IDS], None), (failing, ValueError), ([], CalibrationError)])
def test_no_hook_is_left_behind(loop: Any, error: type[Exception] | None) -> None:
    model = tiny_llama().train()
    before = snapshot(model)
    source = source_of(model)
    block = next(source.blocks())

    if error is None:
        source.captured_calls(block, loop)
    else:
        with pytest.raises(error):
            source.captured_calls(block, loop)

    assert snapshot(model) == before
