"""Static ranges of inputs: moving averages, the least error, headroom."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from octavo.core.calibration.solvers.activation_range import (
    block_amax_counts,
    headroom_amax,
    moving_average_amax,
    search_amax,
)
from octavo.core.errors import ConfigError
from octavo.core.formats import PerTensor, QuantSpec, fake_quantize

INT8 = QuantSpec("int8", PerTensor())


def test_moving_average_starts_at_the_first_batch() -> None:
    assert moving_average_amax([-1.0, -1.0], [2.0, 12.0]) == 2.1
    assert moving_average_amax([-8.0, -4.0], [2.0, 2.0], 0.5) == 6.0


def test_moving_average_of_nothing() -> None:
    with pytest.raises(ConfigError, match="no batches; expected the extremes of at least one"):
        moving_average_amax([], [])


def test_search_clips_a_lone_outlier_unless_the_weight_needs_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(1024, 16)
    x[0, 0] = 8.0
    only_first = torch.zeros(16, 16)
    only_first[0, 0] = 1.0

    clipped = search_amax(x, x.abs().max(), INT8)

    errors = {
        r: (fake_quantize(x, [torch.tensor(8.0 * r)], INT8) - x).square().sum() for r in (1.0, 0.95, 0.9)
    }
    assert clipped == torch.tensor(8.0 * min(errors, key=errors.__getitem__))
    assert search_amax(x, x.abs().max(), INT8, only_first) == 8.0


# ModelOpt 0.47, NVFP4ActHeadroomCalibrator, of the same tensor.
PEER: list[tuple[dict[str, Any], float]] = [
    ({}, 1982.5272216796875),
    ({"anchor_percentile": 50.0, "rho": 2.0}, 8.264199256896973),
    ({"anchor_percentile": 50.0, "rho": 0.5, "upper_percentile": 100.0}, 7.999825477600098),
    ({"anchor_percentile": 50.0, "rho": 0.5, "upper_percentile": 90.0}, 7.415916442871094),
]


@pytest.mark.parametrize(("options", "expected"), PEER, ids=str)
def test_headroom_equals_the_peers(options: dict[str, Any], expected: float) -> None:
    x = curve()

    assert math.isclose(
        headroom_amax(block_amax_counts(x), float(x.abs().max()), **options), expected, rel_tol=1e-6
    )


def curve() -> torch.Tensor:
    i = torch.arange(4096.0).reshape(64, 64)
    return torch.sin(i * i) ** 3 * torch.exp2(i.div(64, rounding_mode="floor") % 7 - 3)


def test_without_blocks_the_maximum_is_kept() -> None:
    assert headroom_amax(block_amax_counts(torch.zeros(2, 20)), 3.0) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 28672.0}, "rho=28672.0: must be above 0 and below 28672"),
        ({"anchor_percentile": 0.0}, "anchor_percentile=0.0: must be above 0 and at most 100"),
        ({"upper_percentile": 101.0}, "upper_percentile=101.0: must be above 0 and at most 100"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        headroom_amax(torch.ones(512, dtype=torch.long), 1.0, **options)
