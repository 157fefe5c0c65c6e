"""Bias: what is subtracted from a tensor before it is rounded, and added again after (affine quantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.core.errors import ConfigError, nearest

METHODS = ("mean", "max_min")


@dataclass(frozen=True)
class Bias:
    """How a bias follows from a tensor.

    Attributes:
        axes: Negative dims that share one; {-4, -2} of keys [batch, heads, tokens, head_dim] leave one for each
            channel of each head.
        method: The mean, or the middle between largest and smallest value.
        dynamic: Of the tensor at hand; else one that calibration fixes.
    """

    axes: tuple[int, ...]
    method: str = "mean"
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"bias method {self.method!r}: expected one of {', '.join(METHODS)}.{nearest(self.method, METHODS)}"
            )

    def of(self, x: Tensor) -> Tensor:
        """Return the bias of `x`, in its dtype, with length 1 in the dims that share one."""
        if self.method == "mean":
            return x.mean(self.axes, keepdim=True)
        return (x.amax(self.axes, keepdim=True) + x.amin(self.axes, keepdim=True)) / 2

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the fields."""
        return {"axes": list(self.axes), "method": self.method, "dynamic": self.dynamic}

    def __str__(self) -> str:
        """Return a short name such as `mean bias over -4, -2`."""
        kind = "dynamic " if self.dynamic else ""
        return f"{kind}{self.method} bias over {', '.join(map(str, self.axes))}"
