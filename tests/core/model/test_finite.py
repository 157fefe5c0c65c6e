"""NaN and infinity are found wherever they are."""

from __future__ import annotations

import pytest
import torch

from octavo.core.model.finite import is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 517, -1])
def test_one_is_enough(dtype: torch.dtype, value: float, place: int) -> None:
    x = torch.linspace(-2, 2, 1000, dtype=dtype).reshape(10, 100)
    assert is_finite(x)

    x.view(-1)[place] = value

    assert not is_finite(x)
    assert not is_finite(x.t())


def test_nothing_is_finite() -> None:
    assert is_finite(torch.empty(0, 4))
