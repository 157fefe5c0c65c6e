"""What is wrong with a stored tensor's values, by what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Values = Literal["any", "finite", "codes", "number", "scales", "signed_scales", "exponents"]
_E4M3_NAN, _E8M0_NAN = 0x7F, 0xFF
_WIDE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def wrong_values(tensor: Tensor, values: Values) -> str:
    """Return what is wrong, with the number of wrong elements, or an empty string.

    Args:
        tensor: A stored tensor.
        values: `any`; `finite` floats; `codes`, which may be E4M3; one positive `number`; positive `scales`, of which 0
            is one of a block without values; `signed_scales`, other than 0; `exponents`, E8M0 as uint8.
    """
    for what, test in _TESTS[values]:
        number = int(test(tensor).sum())
        if number:
            return f"{number} of {tensor.numel()} values {what}"
    return ""


def _not_finite(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float8_e4m3fn:
        return (tensor.view(torch.uint8) & _E4M3_NAN) == _E4M3_NAN
    return ~tensor.isfinite() if tensor.dtype in _WIDE else torch.zeros(1, dtype=torch.bool)


def _below_zero(tensor: Tensor) -> Tensor:
    return tensor.float() < 0


def _zero(tensor: Tensor) -> Tensor:
    return tensor.float() == 0


def _without_number(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) == _E8M0_NAN


_NOT_FINITE = ("that are NaN or infinite", _not_finite)
_BELOW = ("below 0", _below_zero)
_ZERO = ("that are 0", _zero)
_TESTS: dict[Values, tuple[tuple[str, Callable[[Tensor], Tensor]], ...]] = {
    "any": (),
    "finite": (_NOT_FINITE,),
    "codes": (_NOT_FINITE,),
    "number": (_NOT_FINITE, _BELOW, _ZERO),
    "scales": (_NOT_FINITE, _BELOW),
    "signed_scales": (_NOT_FINITE, _ZERO),
    "exponents": (("that stand for NaN", _without_number),),
}
