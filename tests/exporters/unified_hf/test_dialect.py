"""The dialect's numbers: how stored weights round, and which scales are shared by layers that read one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import octavo
from helpers.exporters_models import quantized
from octavo.core.formats import PerBlock, PerTensor, PerToken, QuantSpec
from octavo.exporters.unified_hf.dialect import UnifiedHfDialect
from octavo.exporters.unified_hf.schemes import Scheme, schemes

DIALECT = UnifiedHfDialect()
FP8 = QuantSpec("e4m3")
BLOCK_32 = PerBlock(((-1, 32),))
NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
SQUARE = QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128))))
# Where the dialect's bytes are not the neutral numbers.
STORED: dict[str, dict[str, Any]] = {
    "FP8": {"arithmetic": "divide_native"},  # bf16 quotients are rounded twice
    "FP8_PER_CHANNEL_PER_TOKEN": {"arithmetic": "divide"},
    "fp8_pb_wo": {"arithmetic": "divide"},
    "W8A8_SQ_PER_CHANNEL": {"arithmetic": "divide"},
    "W8A16": {"arithmetic": "divide"},
    "W4A16_AWQ": {"arithmetic": "divide"},
    "NVFP4": {},
    "W4A16_NVFP4": {},
    "W4A8_NVFP4_FP8": {"global_max": 448.0},
    "MXFP8": {},
    "mxfp4": {"ties": "toward_zero"},
    "W4A8_MXFP4_FP8": {"ties": "toward_zero"},
    "W4A16_MXFP4": {"ties": "toward_zero"},
    "MXFP6": {},
    "MXINT8": {},
    "W4A8_AWQ": {"arithmetic": "divide"},
    "NVFP4_AWQ": {},
    "NVFP4_SVD": {},
}
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def maxima(model: torch.nn.Module, kind: str, state: str) -> dict[str, torch.Tensor]:
    """Return {short layer name: calibrated tensor} of the first block."""
    return {
        name.rpartition(".")[2]: getattr(layer.get_submodule(kind), state).clone()
        for name, layer in model.get_submodule("model.layers.0").named_modules()
        if isinstance(layer, octavo.QuantModule)
    }


@pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: scheme.quant_algo)
def test_stored_weights(scheme: Scheme) -> None:
    calibrated = replace(scheme.weight_with_block(32), arithmetic="multiply", ties="even")
    if calibrated.global_max is not None:
        calibrated = replace(calibrated, global_max=2688.0)

    stored = DIALECT.weight_spec(calibrated, scheme.inputs, scheme.then)
    assert stored == replace(calibrated, **STORED[scheme.quant_algo])


def test_a_format_that_has_no_place_stays_for_the_exporter_to_refuse() -> None:
    weight = QuantSpec("e5m2", PerToken())

    assert DIALECT.weight_spec(weight, None) == weight


@pytest.mark.parametrize(
    ("spec", "shapes", "shared"),
    [
        (NVFP4, [(64, 64), (32, 64)], ("global_amax",)),
        (FP8, [(64, 64), (32, 64)], ()),
        (QuantSpec("e4m3", PerTensor(), arithmetic="divide"), [(64, 64)] * 2, ()),
        (SQUARE, [(128, 128), (64, 128)], ("amax",)),
        (SQUARE, [(128, 128), (256, 128)], ()),
        (QuantSpec("int4", BLOCK_32), [(64, 32), (32, 32)], ()),
    ],
    ids=str,
)
def test_shared_state(spec: QuantSpec, shapes: list[tuple[int, int]], shared: tuple[str, ...]) -> None:
    assert DIALECT.shared_state([spec] * len(shapes), shapes) == shared


@pytest.mark.parametrize(
    ("spec", "divisor"), [(FP8, 448.0), (NVFP4, 2688.0), (QuantSpec("int8"), 127.0)], ids=str
)
def test_activations_get_the_maximum_that_a_reader_recovers(spec: QuantSpec, divisor: float) -> None:
    (name,) = spec.state
    maxima = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5

    found = torch.stack(
        [DIALECT.activation_state("input_quantizer", spec, {name: amax})[name] for amax in maxima]
    )

    assert torch.equal(found, (maxima / divisor) * divisor)
    assert not torch.equal(found, maxima), "some differ in the last bit, or there would be nothing to do"


def test_fused_nvfp4_weights_get_their_common_maximum_and_only_while_finalized() -> None:
    model = quantized("NVFP4_DEFAULT_CFG")
    before = maxima(model, "weight_quantizer", "global_amax")

    with octavo.finalized(model, "unified_hf"):
        during = maxima(model, "weight_quantizer", "global_amax")

    for group in GROUPS:
        assert len({float(before[name]) for name in group}) == len(group), "the test needs layers that differ"
        assert {float(during[name]) for name in group} == {max(float(before[name]) for name in group)}
    for name in ("o_proj", "down_proj"):
        assert during[name] == before[name]
    assert maxima(model, "weight_quantizer", "global_amax") == before


def test_fp8_weights_keep_scales_of_their_own() -> None:
    model = quantized("FP8_DEFAULT_CFG")
    before = maxima(model, "weight_quantizer", "amax")

    with octavo.finalized(model, "unified_hf"):
        assert maxima(model, "weight_quantizer", "amax") == before


def test_single_square_blocks_are_shared_and_larger_ones_are_not() -> None:
    model = quantized("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG")
    before = maxima(model, "weight_quantizer", "amax")

    with octavo.finalized(model, "unified_hf"):
        during = maxima(model, "weight_quantizer", "amax")

    single, several = GROUPS
    assert {float(during[name]) for name in single} == {max(float(before[name]) for name in single)}
    for name in several:
        assert torch.equal(during[name], before[name])
