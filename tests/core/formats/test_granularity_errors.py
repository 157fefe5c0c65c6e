"""Granularities that do not exist or do not fit a tensor, and the numbers in their messages."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from octavo.core.errors import ConfigError, ShapeError
from octavo.core.formats import (
    PerBlock,
    PerChannel,
    PerToken,
    QuantSpec,
    compute_amax,
    dequantize,
    fake_quantize,
    quantize,
)
from octavo.core.formats.granularity import granularity_from_json


@pytest.mark.parametrize(
    "sizes", [(), ((0, 16),), ((1, 16),), ((-1, 0),), ((-1, -4),), ((-1, 16), (0, 2))], ids=str
)
def test_block_sizes_need_negative_axes_and_positive_lengths(sizes: tuple[tuple[int, int], ...]) -> None:
    message = f"block sizes {dict(sizes)}: axes must be negative and lengths positive"

    with pytest.raises(ConfigError, match=re.escape(message)):
        PerBlock(sizes)


def test_an_axis_has_one_block_length() -> None:
    with pytest.raises(ConfigError):
        PerBlock(((-1, 16), (-1, 32)))


def test_block_sizes_are_equal_in_any_order() -> None:
    assert PerBlock(((-2, 4), (-1, 3))) == PerBlock(((-1, 3), (-2, 4)))
    assert PerBlock(((-2, 4), (-1, 3))).sizes == ((-1, 3), (-2, 4))


@pytest.mark.parametrize(("axis", "num_dims"), [(2, 2), (-3, 2), (1, 1), (0, 0)])
def test_a_channel_axis_that_does_not_exist(axis: int, num_dims: int) -> None:
    x = torch.zeros([3] * num_dims)
    spec = QuantSpec("int8", PerChannel(axis), dynamic=True)

    for use in (
        lambda: compute_amax(x, spec),
        lambda: fake_quantize(x, [], spec),
        lambda: quantize(x, [], spec),
    ):
        with pytest.raises(ShapeError, match=f"axis {axis} does not exist in a tensor of {num_dims} dims"):
            use()


@pytest.mark.parametrize(("axis", "num_dims"), [(-2, 1), (-3, 2), (-1, 0)])
def test_a_block_axis_that_does_not_exist(axis: int, num_dims: int) -> None:
    x = torch.zeros([3] * num_dims)
    spec = QuantSpec("int8", PerBlock(((axis, 4),)), dynamic=True)

    for use in (
        lambda: compute_amax(x, spec),
        lambda: fake_quantize(x, [], spec),
        lambda: quantize(x, [], spec),
    ):
        with pytest.raises(
            ShapeError, match=f"block axis {axis} does not exist in a tensor of {num_dims} dims"
        ):
            use()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "rows"},
        {"axis": 0},
        {"kind": "channel"},
        {"kind": "channel", "axis": "0"},
        {"kind": "block"},
        {"kind": "block", "sizes": 16},
        {"kind": "block", "sizes": {"-1": "16"}},
        {"kind": "block", "sizes": {"--1": 16}},
        "tensor",
        ["tensor"],
        None,
    ],
    ids=str,
)
def test_json_of_no_granularity(data: Any) -> None:
    message = f"granularity {data!r} is not one of tensor, channel, token, block, stacked with their fields"

    with pytest.raises(ConfigError, match=re.escape(message)):
        granularity_from_json(data)


def test_json_with_block_sizes_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match=re.escape("block sizes {1: 16}")):
        granularity_from_json({"kind": "block", "sizes": {"1": 16}})


def test_scales_that_do_not_fit_the_shape() -> None:
    spec = QuantSpec("int4", PerBlock(((-1, 4),)))
    payload, scale = torch.zeros(6, 5, dtype=torch.uint8), torch.ones(6, 2)
    message = f"a tensor of shape (6, 10) quantized as {spec} has a scale of shape (6, 3), found (6, 2)"

    with pytest.raises(ShapeError, match=re.escape(message)):
        dequantize(payload, scale, None, spec, (6, 10), torch.float32)


def test_a_payload_that_does_not_fit_the_shape() -> None:
    spec = QuantSpec("int4", PerToken())
    message = f"a tensor of shape (6, 10) quantized as {spec} has a payload of shape (6, 5), found (6, 4)"

    with pytest.raises(ShapeError, match=re.escape(message)):
        dequantize(torch.zeros(6, 4, dtype=torch.uint8), torch.ones(6), None, spec, (6, 10), torch.float32)


@pytest.mark.parametrize("rows", [5, 1])
def test_a_payload_with_other_rows_than_the_shape(rows: int) -> None:
    spec = QuantSpec("int8", PerToken())
    payload = torch.zeros(rows, 10, dtype=torch.uint8)

    with pytest.raises(ShapeError):
        dequantize(payload, torch.ones(6), None, spec, (6, 10), torch.float32)
