"""A fused layer of which nobody knows which rows are q, k and v is refused, not guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

import octavo
from helpers.tensorrt_llm_models import DECODER, tiny
from octavo.core.model.segments import RowSegments
from octavo.core.report.weight_error import WeightErrors
from octavo.exporters.tensorrt_llm.inspection import inspect_model
from octavo.exporters.tensorrt_llm.joined import block_layers
from octavo.exporters.tensorrt_llm.model_weights import ModelWeights

FUSED = "model.layers.0.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("segments", "missing"),
    [({}, "attention.q"), ({FUSED: RowSegments({"attention.q": 128, "attention.kv": 128})}, "attention.k")],
)
def test_rows_that_are_not_known(segments: Mapping[str, RowSegments], missing: str) -> None:
    model = tiny("phi3", **DECODER)
    description = octavo.plugins().describe_model(model)
    assert description is not None
    source = ModelWeights(model, inspect_model(model, for_reader=False), False, {}, WeightErrors())
    joined = next(block_layers(description, 0, source, {}))
    assert joined.layers == [FUSED]
    rows = [part.index for part in joined.parts[0] if part.index is not None]
    assert torch.equal(torch.cat(rows), torch.arange(256)), "queries, keys and values, by their known rows"

    message = f"which rows of {re.escape(FUSED)} are {re.escape(missing)} is not known; add `segments` to the model's"
    with pytest.raises(octavo.ExportError, match=message):
        next(block_layers(replace(description, segments=segments), 0, source, {}))
