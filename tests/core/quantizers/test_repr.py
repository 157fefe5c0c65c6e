"""`print(model)` shows formats and state."""

from __future__ import annotations

import pytest
import torch

from octavo.core.formats import PerBlock, PerChannel, QuantSpec
from octavo.core.quantizers import SequentialQuantizer, TensorQuantizer

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0)
MXFP4 = QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True)


def calibrated(spec: QuantSpec, **values: torch.Tensor) -> TensorQuantizer:
    quantizer = TensorQuantizer(spec, (6, 32))
    quantizer.set_state(**values)
    return quantizer


def switched_off() -> TensorQuantizer:
    quantizer = calibrated(QuantSpec("int8"), amax=torch.tensor(1.0))
    quantizer.enabled = False
    return quantizer


@pytest.mark.parametrize(
    ("quantizer", "shown"),
    [
        (TensorQuantizer(), "off"),
        (switched_off(), "off"),
        (TensorQuantizer(MXFP4), "e2m1 block{-1:32} e8m0 dynamic"),
        (TensorQuantizer(QuantSpec("int8")), "int8 tensor, not calibrated"),
        (TensorQuantizer(QuantSpec("int8"), device=torch.device("meta")), "int8 tensor"),
        (calibrated(QuantSpec("int8"), amax=torch.tensor(1.23456)), "int8 tensor, amax=1.235"),
        (calibrated(QuantSpec("int8", PerChannel(0)), amax=torch.ones(6)), "int8 channel0, amax=[6]"),
        (
            calibrated(NVFP4, amax=torch.ones(6, 2), global_amax=torch.tensor(3.0)),
            "e2m1 block{-1:16} e4m3·global, amax=[6, 2], global_amax=3",
        ),
    ],
    ids=range(8),
)
def test_one_line(quantizer: TensorQuantizer, shown: str) -> None:
    assert repr(quantizer) == f"TensorQuantizer({shown})"


def test_a_chain_shows_its_stages() -> None:
    chain = SequentialQuantizer([TensorQuantizer(MXFP4), TensorQuantizer(QuantSpec("int8"))])

    assert repr(chain).splitlines() == [
        "SequentialQuantizer(",
        "  (0): TensorQuantizer(e2m1 block{-1:32} e8m0 dynamic)",
        "  (1): TensorQuantizer(int8 tensor, not calibrated)",
        ")",
    ]
