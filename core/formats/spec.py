"""QuantSpec: everything that says how one tensor is quantized, as frozen, comparable, JSON-ready data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from octavo.core.errors import ConfigError, nearest
from octavo.core.formats.elements import ElementType, element_type
from octavo.core.formats.granularity import (
    PER_TENSOR,
    Granularity,
    Stacked,
    granularity_from_json,
    granularity_to_json,
)

ScaleType = Literal["float32", "e4m3", "e8m0"]
Arithmetic = Literal["multiply", "divide", "divide_native"]
Ties = Literal["even", "toward_zero"]
ScaleRounding = Literal["ceil", "even", "floor"]

_CHOICES = {"scale": ScaleType, "arithmetic": Arithmetic, "ties": Ties, "scale_rounding": ScaleRounding}
# What JSON may hold in the fields whose values are checked no further.
_JSON_TYPES = {"element": (str,), "global_max": (float, int, type(None)), "dynamic": (bool,)}


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor becomes codes and scales: ``x ≈ code · scale [· global scale]``.

    Attributes:
        element: Name of the element type of the codes.
        granularity: Which elements share a (first-level) scale.
        scale: Type in which first-level scales are stored. `e8m0` is a power of two (see `scale_rounding`);
            `e4m3` needs a second level.
        global_max: None for one level. Otherwise a second, per-tensor fp32 scale is
            ``global_amax / global_max``; NVFP4 uses 6 · 448 = 2688.
        dynamic: First-level scales are computed from the values at hand instead of a calibrated `amax`.
        arithmetic: How fp32 rounding enters where scales are float32. `multiply`: codes = round(x · f) and
            values = code · (1/f), with f = max/amax for integers and (1/amax) · max for floats, as
            fake-quantizing kernels do. `divide`: round(x / scale) with scale = amax/max, as checkpoint writers
            do. `divide_native`: the quotient is first rounded to the dtype of x (double rounding in bf16,
            which one dialect's bytes need). With e4m3 and e8m0 scales, always x / scale.
        ties: `even`, or `toward_zero` with every exact zero stored as −0 (one dialect's MXFP4).
        scale_rounding: Which power of two an `e8m0` scale is. `ceil`: the smallest with which no value saturates.
            `floor`: 2^(⌊log2 amax⌋ − emax), of the OCP MX specification 1.0. `even`: the same after amax was
            rounded to the mantissa bits of the element.
    """

    element: str
    granularity: Granularity = PER_TENSOR
    scale: ScaleType = "float32"
    global_max: float | None = None
    dynamic: bool = False
    arithmetic: Arithmetic = "multiply"
    ties: Ties = "even"
    scale_rounding: ScaleRounding = "ceil"

    def __post_init__(self) -> None:
        element_type(self.element)
        object.__setattr__(self, "dynamic", bool(self.dynamic))  # equal specs must have equal keys
        if self.global_max is not None:
            object.__setattr__(self, "global_max", float(self.global_max))
            if not 0 < self.global_max < math.inf:
                raise ConfigError(f"global_max={self.global_max}: must be a positive number")
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            if value not in get_args(allowed):
                raise ConfigError(f"{field}={value!r}; expected one of {', '.join(get_args(allowed))}")
        if self.scale_rounding != "ceil" and self.scale != "e8m0":
            raise ConfigError(
                f"scale_rounding={self.scale_rounding!r} is for e8m0 scales, found {self.scale}"
            )
        if (self.scale == "e4m3") != (self.global_max is not None):
            raise ConfigError(
                f"scale={self.scale!r} with global_max={self.global_max}: e4m3 scales have a second level "
                "(global_max; NVFP4 uses 2688) and the other scale types have none"
            )
        if self.ties == "toward_zero" and not self.element_type.is_float:
            raise ConfigError(f"ties='toward_zero' is for floating-point codes, found {self.element}")

    @property
    def element_type(self) -> ElementType:
        """The element type of the codes."""
        return element_type(self.element)

    @property
    def may_be_negative(self) -> bool:
        """Whether scales may be negative, which puts an integer format's longer side on the positive values."""
        return self.scale == "float32" and -self.element_type.min > self.element_type.max

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the calibrated tensors that quantizing needs, in the order that the ops take them."""
        names = () if self.dynamic else ("amax",)
        return names if self.global_max is None else (*names, "global_amax")

    def state_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the state tensor `name` for a tensor of `shape`."""
        if name == "amax":
            return self.granularity.scale_shape(shape)
        return (shape[0],) if self.is_stacked else ()

    @property
    def is_stacked(self) -> bool:
        """Whether the tensor is a stack of independent ones, along its first dim."""
        return isinstance(self.granularity, Stacked)

    def stacked(self) -> QuantSpec:
        """Return the format of tensors of this format that are stacked along a new first dim."""
        assert not isinstance(self.granularity, Stacked)  # noqa: S101
        return replace(self, granularity=Stacked(self.granularity))

    def unstacked(self) -> QuantSpec:
        """Return the format of each of the stacked tensors; a spec that is not stacked is returned as it is."""
        return (
            replace(self, granularity=self.granularity.each)
            if isinstance(self.granularity, Stacked)
            else self
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict that `from_json` reads back."""
        return {
            "element": self.element,
            "granularity": granularity_to_json(self.granularity),
            "scale": self.scale,
            "global_max": self.global_max,
            "dynamic": self.dynamic,
            "arithmetic": self.arithmetic,
            "ties": self.ties,
            **({} if self.scale_rounding == "ceil" else {"scale_rounding": self.scale_rounding}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Read what `to_json` wrote; fields left out take their defaults.

        Raises:
            ConfigError: a field is unknown or has a value that does not exist.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"a QuantSpec is a dict of its fields, found {data!r}")
        fields = dict(data)
        for name in fields.keys() - cls.__dataclass_fields__.keys():
            raise ConfigError(
                f"unknown field {name!r} of QuantSpec.{nearest(name, cls.__dataclass_fields__)}"
            )
        if "element" not in fields:
            raise ConfigError(f"QuantSpec needs an 'element', found {sorted(fields)}")
        for name, types in _JSON_TYPES.items():
            if name in fields and type(fields[name]) not in types:
                raise ConfigError(f"{name}={fields[name]!r} of QuantSpec; expected {types[0].__name__}")
        if "granularity" in fields:
            fields["granularity"] = granularity_from_json(fields["granularity"])
        return cls(**fields)

    @cached_property
    def key(self) -> str:
        """The spec as one string, which is how the ops take it; equal specs have equal keys."""
        return chain_key([self])

    def __str__(self) -> str:
        """Return a short name such as `e2m1 block{-1:16} e4m3·global dynamic`."""
        where = granularity_to_json(self.granularity)
        stack = "stacked " if self.is_stacked else ""
        where = where.get("each", where)
        kind = where.pop("kind")
        detail = str(where["axis"]) if kind == "channel" else ""
        if kind == "block":
            detail = "{" + ",".join(f"{axis}:{length}" for axis, length in where["sizes"].items()) + "}"
        words = [self.element, f"{stack}{kind}{detail}"]
        if self.scale != "float32":
            words.append(self.scale + ("·global" if self.global_max is not None else ""))
        if self.scale_rounding != "ceil":
            words.append(self.scale_rounding)
        return " ".join([*words, "dynamic"] if self.dynamic else words)


def chain_key(specs: Sequence[QuantSpec]) -> str:
    """Return the string that stands for quantizing with each of `specs` in turn (empty: not at all)."""
    return json.dumps([spec.to_json() for spec in specs], separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def parse_chain(key: str) -> tuple[QuantSpec, ...]:
    """Read what `chain_key` wrote."""
    return tuple(QuantSpec.from_json(data) for data in json.loads(key))


@lru_cache(maxsize=1024)
def unstacked_chain(key: str) -> str:
    """Return the chain for one of the tensors that `key` is the chain of a stack of."""
    return chain_key([spec.unstacked() for spec in parse_chain(key)])
