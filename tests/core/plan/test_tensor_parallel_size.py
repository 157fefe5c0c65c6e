"""What is no tensor-parallel size is refused with its value."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import octavo


@pytest.mark.parametrize("tp", [0, -2, "2", 1.5])
def test_what_is_no_size(tp: Any) -> None:
    with pytest.raises(octavo.ConfigError, match=rf"^tp={tp!r}: .* must be a whole number, at least 1$"):
        octavo.plan(nn.Sequential(nn.Linear(4, 4)), "INT8_WEIGHT_ONLY_CFG", tp=tp)
