"""Megatron-core models that two ranks share are calibrated as they are by one, on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.launcher import run_on_two_ranks

FORMATS = ["fp8", "fp8_sp", "nvfp4", "int8", "int8_tied", "int4", "attention", "histogram"]
NEAR = 2e-6  # relative, of losses in fp32


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_on_two_ranks("megatron_statistics", tmp_path_factory.mktemp("statistics"))


@pytest.mark.launcher
def test_scales_of_two_ranks_are_those_of_one(result: Any) -> None:
    for name in FORMATS:
        found = result[name]
        assert found["tensors"] >= 12, name
        assert found["weights"] == [[], []], f"{name}: weights' scales are not the bytes of one rank's"
        assert found["inputs"] == [[], []], f"{name}: inputs' scales are not within 1e-6 of one rank's"


@pytest.mark.launcher
def test_outputs_of_two_ranks_are_those_of_one(result: Any) -> None:
    for name in FORMATS:
        plain, one, two = result[name]["losses"]
        assert two == pytest.approx(one, rel=NEAR), name
        assert one != pytest.approx(plain, rel=10 * NEAR), f"{name}: nothing was rounded"


@pytest.mark.launcher
def test_codes_are_the_same(result: Any) -> None:
    assert len(result["codes"]) == 9
    assert min(result["codes"].values()) >= 0.999


@pytest.mark.launcher
def test_data_parallel_ranks_share_maxima(result: Any) -> None:
    assert result["data"]["differing"] == [[], []]


@pytest.mark.launcher
def test_gradients_of_two_ranks_are_those_of_one(result: Any) -> None:
    """Of a column-parallel weight, a row-parallel one and the embedding, without and with sequence parallelism."""
    assert result["gradients"]["nonzero"] == [True] * 3
    assert result["gradients"]["near"] == [[[True] * 3] * 2] * 2


@pytest.mark.launcher
def test_what_ranks_cannot_share_is_refused(result: Any) -> None:
    refused = result["refused"]
    assert (
        "linear_proj.weight_quantizer: last dim 32 is not divisible by the block of 64" in refused["blocks"]
    )
    assert "the algorithm 'smoothquant' is not available where ranks share" in refused["smoothquant"]
    assert refused["plain"] == ["ColumnParallelLinear", "RowParallelLinear"]
    for message in refused["nan"]:  # of both ranks, though one has the weight
        assert (
            "1 quantizers saw NaN or infinite values: decoder.layers.1.mlp.linear_fc2.weight_quantizer"
            in message
        )
