"""SmoothQuant's own search, the formats it works on, and AWQ where data is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.core.errors import UnsupportedError
from octavo.core.modes.record import last_record


def two_layers() -> nn.Module:
    """Two layers, the first of which reads loud channels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 128, bias=False), nn.Tanh(), nn.Linear(128, 16, bias=False))


def loud(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels = torch.where(torch.arange(128) % 13 == 0, 30.0, 1.0)
    return [torch.randn(100, 128, generator=generator) * channels for _ in range(count)]


def rows_of(model: nn.Module) -> list[dict[str, Any]]:
    record = last_record(model, "quantize")
    assert record is not None
    rows: list[dict[str, Any]] = record.state["report"]["weights"]
    return rows


def quantized(preset: str, algorithm: Any, model: nn.Module | None = None) -> nn.Module:
    config = {**octavo.merge_configs(preset), "algorithm": algorithm}
    return octavo.quantize(two_layers() if model is None else model, config, loud(), quiet=True)


@torch.no_grad()
def test_a_searched_alpha_is_no_worse_than_any_other() -> None:
    x, exact = torch.cat(loud()), two_layers()[0](torch.cat(loud()))

    def error(model: nn.Module) -> float:
        return (model[0](x) - exact).square().sum().item()

    found = quantized("INT8_SMOOTHQUANT_CFG", {"method": "smoothquant", "alpha": "search"})
    fixed = [
        error(quantized("INT8_SMOOTHQUANT_CFG", {"method": "smoothquant", "alpha": a}))
        for a in (0.5, 0.8, 1.0)
    ]

    rows = rows_of(found)
    assert [row["weight"] for row in rows] == ["0.weight", "2.weight"]
    assert all(row["output_error"] <= row["output_error_without"] for row in rows)
    assert rows[0]["output_error"] < 0.5 * rows[0]["output_error_without"]
    assert error(found) <= 1.02 * min(fixed)


def test_other_formats_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"^smoothquant smooths linear layers with INT8 weights and INT8 inputs"
    ):
        quantized("FP8_DEFAULT_CFG", "smoothquant")


def test_awq_reports_the_error_of_every_exponent_when_asked() -> None:
    rows = rows_of(quantized("INT4_AWQ_CFG", {"method": "awq_lite", "alpha_step": 0.5, "debug": True}))

    assert list(rows[0]["errors"]) == ["0", "0.5", "1"]
    assert rows[0]["output_error"] == min(rows[0]["errors"].values())


def test_clipping_lowers_the_error_of_blocks() -> None:
    x = torch.cat(loud())
    plain = two_layers()[0]
    with torch.no_grad():
        lite, full = (
            (quantized("INT4_AWQ_CFG", method)[0](x) - plain(x)).square().sum().item()
            for method in ("awq_lite", "awq_full")
        )

    rows = rows_of(quantized("INT4_AWQ_CFG", "awq_full"))
    assert [row["algorithm"] for row in rows] == ["awq_lite"] * 2 + ["awq_clip"] * 2
    assert all(0.5 <= row["clip_ratio"] <= 1 for row in rows[2:])
    assert full < lite


def test_a_layer_without_data_keeps_its_scales_and_is_reported() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = two_layers(), nn.Linear(128, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = quantized("INT4_AWQ_CFG", "awq_lite", Half())

    fallbacks = {row["weight"]: row["fallback"] for row in rows_of(model) if "fallback" in row}
    assert fallbacks == {"unused.weight": "no calibration data reached it: it keeps the scales of 'max'"}
    assert model.unused.input_quantizer.pre_quant_scale is None
