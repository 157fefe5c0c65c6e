"""Calibrator: how a quantizer's `amax` follows from the tensors that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.core.errors import ConfigError, nearest
from octavo.core.formats import PerTensor, QuantSpec

_OPTIONS = {
    "max": (),
    "entropy": ("num_bins",),
    "percentile": ("num_bins", "percentile"),
    "mse": ("num_bins",),
}
_ALIASES = {"histogram": "entropy"}
_FEWEST_BINS, _MOST_BINS = 256, 65536


@dataclass(frozen=True)
class Calibrator:
    """The choice of `amax`; every method but `max` clips the rarest, largest values, read from a histogram.

    Attributes:
        method: `max`: the largest magnitude. `entropy`: the clipped, quantized distribution is closest to the
            seen one (Kullback-Leibler divergence; Migacz, "8-bit Inference with TensorRT", GTC 2017).
            `percentile`: this share of the values is not clipped. `mse`: the squared error of rounding is least.
        num_bins: Bins of the histogram, a power of two; the largest value falls into its upper half.
        percentile: Per cent of the values that `percentile` does not clip.
    """

    method: str = "max"
    num_bins: int = 4096
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.method not in _OPTIONS:
            known = [*_OPTIONS, *_ALIASES]
            raise ConfigError(
                f"unknown calibrator {self.method!r}; known: {', '.join(known)}.{nearest(self.method, known)}"
            )
        bins, is_integer = self.num_bins, type(self.num_bins) is int
        if not is_integer or not _FEWEST_BINS <= bins <= _MOST_BINS or bins.bit_count() != 1:
            raise ConfigError(
                f"calibrator {self.method!r}: num_bins={bins!r}; expected a power of two from {_FEWEST_BINS} to "
                f"{_MOST_BINS}"
            )
        percentile = self.percentile
        if type(percentile) not in (int, float) or not 0 < percentile <= 100:
            raise ConfigError(
                f"calibrator {self.method!r}: percentile={percentile!r}; expected a number above 0, up to 100"
            )

    def check(self, spec: QuantSpec) -> None:
        """Check that this method finds what a quantizer of `spec` needs.

        Raises:
            ConfigError: it does not.
        """
        if self.method == "max":
            return
        if spec.state != ("amax",) or not isinstance(spec.granularity, PerTensor):
            raise ConfigError(
                f"calibrator {self.method!r} finds one static amax per tensor, and {spec} needs "
                f"{' and '.join(spec.state) or 'none'} of another kind; use 'max', or a static format with axis=None"
            )
        if self.method == "entropy" and spec.element_type.is_float:
            raise ConfigError(
                f"calibrator 'entropy' is for integer formats, whose levels are equally spaced; found {spec}. Use "
                "'percentile' or 'mse'"
            )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_json` reads back."""
        return {"method": self.method, **{name: getattr(self, name) for name in _OPTIONS[self.method]}}

    @classmethod
    def from_json(cls, data: str | Mapping[str, Any]) -> Calibrator:
        """Read a method's name, or a dict with `method` and its options.

        Raises:
            ConfigError: the method or an option is unknown, or has a wrong value.
        """
        options: dict[str, Any] = {"method": data} if isinstance(data, str) else dict(data)
        method = str(options.pop("method", None))
        calibrator = cls(_ALIASES.get(method, method))
        allowed = _OPTIONS[calibrator.method]
        for name in options.keys() - set(allowed):
            raise ConfigError(
                f"calibrator {calibrator.method!r} has no option {name!r}; its options: "
                f"{', '.join(allowed) or 'none'}.{nearest(str(name), allowed)}"
            )
        return cls(calibrator.method, **options)


MAX = Calibrator()
