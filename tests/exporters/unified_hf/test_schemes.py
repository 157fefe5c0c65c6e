"""Which pairs of weight and input formats have a name in the dialect, and that no other pair has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import octavo
from helpers.exporters_formats import INPUTS, WEIGHTS, layer_of
from helpers.exporters_models import ALGORITHMS, plain_model
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.unified_hf.schemes import Scheme, block_length, scheme_for, schemes

STORED = {
    ("fp8", "fp8"): "FP8",
    ("fp8 channel", "fp8 token"): "FP8_PER_CHANNEL_PER_TOKEN",
    ("fp8 square", "none"): "fp8_pb_wo",
    ("int8 channel", "int8"): "W8A8_SQ_PER_CHANNEL",
    ("int8 channel", "none"): "W8A16",
    ("int4 block", "none"): "W4A16_AWQ",
    ("int4 block 32", "none"): "W4A16_AWQ",
    ("nvfp4", "nvfp4"): "NVFP4",
    ("nvfp4 static", "nvfp4"): "NVFP4",
    ("nvfp4", "none"): "W4A16_NVFP4",
    ("nvfp4 static", "none"): "W4A16_NVFP4",
    ("nvfp4 32", "none"): "W4A16_NVFP4",
    ("nvfp4", "fp8"): "W4A8_NVFP4_FP8",
    ("nvfp4 static", "fp8"): "W4A8_NVFP4_FP8",
    ("nvfp4 32", "fp8"): "W4A8_NVFP4_FP8",
    ("mxfp8", "mxfp8"): "MXFP8",
    ("mxfp6", "mxfp6"): "MXFP6",
    ("mxint8", "mxint8"): "MXINT8",
    ("mxfp4", "mxfp4"): "mxfp4",
    ("mxfp4", "fp8"): "W4A8_MXFP4_FP8",
    ("mxfp4", "fp8 dynamic"): "W4A8_MXFP4_FP8",
    ("mxfp4", "none"): "W4A16_MXFP4",
}


def test_these_pairs_have_a_name_and_no_others() -> None:
    found = {
        (weight, inputs): scheme_for(LayerFormat(WEIGHTS[weight], INPUTS[inputs]))
        for weight in WEIGHTS
        for inputs in INPUTS
    }

    assert {pair: scheme.quant_algo for pair, scheme in found.items() if scheme is not None} == STORED


def test_every_scheme_has_a_pair() -> None:
    used = [scheme_for(LayerFormat(WEIGHTS[weight], INPUTS[inputs])) for weight, inputs in STORED]
    unused = [scheme for scheme in schemes() if scheme not in used]

    assert [scheme.quant_algo for scheme in unused if not scheme.smoothing and scheme.then is None] == []


def test_names_of_smoothed_layers() -> None:
    """Only NVFP4 has another name when it is smoothed."""
    found = {
        (weight, inputs): scheme_for(LayerFormat(WEIGHTS[weight], INPUTS[inputs], smoothing="scaled"))
        for weight, inputs in STORED
    }

    renamed = {pair: scheme.quant_algo for pair, scheme in found.items() if scheme is not None}
    assert {pair for pair, name in renamed.items() if name != STORED[pair]} == {
        ("nvfp4", "nvfp4"),
        ("nvfp4 static", "nvfp4"),
    }
    assert renamed["nvfp4", "nvfp4"] == "NVFP4_AWQ"


def test_int4_rounded_once_more_to_fp8() -> None:
    int4, fp8 = WEIGHTS["int4 block"], WEIGHTS["fp8"]

    assert scheme_for(LayerFormat(int4, fp8, fp8)).quant_algo == "W4A8_AWQ"  # type: ignore[union-attr]
    assert scheme_for(LayerFormat(int4, None, fp8)) is None
    assert scheme_for(LayerFormat(int4, fp8, WEIGHTS["int8"])) is None


@pytest.mark.parametrize("preset", ALGORITHMS)
def test_presets_produce_these_schemes(preset: str) -> None:
    with torch.device("meta"):
        plan = octavo.plan(plain_model(), preset)
    formats = {
        LayerFormat(*(layer.quantizers[kind][0].spec if kind in layer.quantizers else None for kind in kinds))
        for layer in plan.layers
        if layer.is_quantized
        for kinds in [("weight_quantizer", "input_quantizer")]
    }

    assert {scheme.quant_algo if scheme else None for scheme in map(scheme_for, formats)} == {
        ALGORITHMS[preset]
    }


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.quant_algo)
def test_a_finalized_weight_still_matches(scheme: Scheme) -> None:
    stored = scheme.weight_with_block(32)

    assert scheme_for(layer_of(scheme, 32)) is scheme
    assert scheme.stored_weight(stored) == stored


@pytest.mark.parametrize(
    "change", [{"arithmetic": "divide"}, {"ties": "toward_zero"}, {"dynamic": True}], ids=str
)
def test_how_a_weight_was_rounded_does_not_matter(change: dict[str, object]) -> None:
    weight = replace(WEIGHTS["fp8"], **change)

    assert scheme_for(LayerFormat(weight, INPUTS["fp8"])) is schemes()[0]


@pytest.mark.parametrize(
    ("weight", "length"),
    [("nvfp4 32", 32), ("int4 block", 128), ("fp8 square", None), ("int8 channel", None)],
)
def test_block_length(weight: str, length: int | None) -> None:
    assert block_length(WEIGHTS[weight]) == length
