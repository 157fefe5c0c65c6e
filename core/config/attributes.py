"""The attributes of one quantizer in a config, and the QuantSpec that they mean."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from octavo.core.config.transforms import read_bias, read_rotation
from octavo.core.errors import ConfigError, UnsupportedError, nearest
from octavo.core.formats import (
    Granularity,
    PerBlock,
    PerChannel,
    PerTensor,
    PerToken,
    QuantSpec,
    element_type,
)
from octavo.core.formats.spec import ScaleType
from octavo.core.quantizers import Bias, Calibrator, Rotation

E4M3_MAX = 448.0
# The block scale of the tensor's largest magnitude with four_over_six: it leaves room for scales of 1.5 times that.
FOUR_OVER_SIX_MAX = 256.0
_FLOAT_NAMES = {(4, 3): "e4m3", (5, 2): "e5m2", (2, 1): "e2m1", (3, 2): "e3m2", (2, 3): "e2m3"}
_BLOCK_OPTIONS = ("type", "scale_bits", "scale_block_sizes", "scale_rounding", "four_over_six")
# Attributes that are understood and not available yet, with the value that means "not used".
_UNAVAILABLE = {
    "fake_quant": True,
    "backend": None,
    "backend_extra_args": None,
    "learn_amax": False,
    "trt_high_precision_dtype": "Float",
}


class QuantizerAttributes(BaseModel):
    """Attributes of one quantizer, with the names and defaults of ModelOpt's `QuantizerAttributeConfig`.

    Attributes:
        enable: Whether the quantizer rounds.
        num_bits: Integer width, (exponent, mantissa) bits, or a name such as "e4m3".
        axis: Axis that keeps its own scales; None for one scale per tensor.
        block_sizes: {negative axis: length}, with the options `type`, `scale_bits`, `scale_rounding` (`ceil`, `even`
            or `floor`; ours, for E8M0 scales); excludes `axis`.
        type: `dynamic` computes scales from the values at hand; `block_sizes` may say it, too.
        unsigned: Integer codes start at 0.
        narrow_range: Integer codes leave out the lowest one, so that the range is symmetric.
        constant_amax: Pins `amax` (or `global_amax`) to this positive value; nothing is calibrated.
        use_constant_amax: Short for `constant_amax` 448.
        pass_through_bwd: Gradients also pass where values saturate. Off unless asked for.
        effective_bits: Bits per value with scales; only informs searches.
        calibrator: How calibration chooses `amax`: `max`, `entropy` (also called `histogram`), `percentile`, `mse`, or
            a dict with `method` and the options of `Calibrator`.
        bias: Subtracted before rounding and added again after: {negative axis: None, …} of the dims that share one,
            with `type` (`static` or `dynamic`) and `method` (`mean` or `max_min`). Of queries, keys and values.
        rotate: A Hadamard transform before rounding, also of a quantizer that is off: True, or a dict with `enable`,
            `mode` (`rotate` or `rotate_back`) and `block_size`. Of queries, keys and values.
    """

    model_config = ConfigDict(extra="forbid")

    enable: bool = True
    num_bits: int | tuple[int, int] | str = 8
    axis: int | tuple[int, ...] | None = None
    block_sizes: dict[int | str, Any] | None = None
    type: Literal["static", "dynamic"] = "static"
    unsigned: bool = False
    narrow_range: bool = False
    constant_amax: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    use_constant_amax: bool = False
    pass_through_bwd: bool = False
    effective_bits: float | None = None
    fake_quant: bool = True
    bias: dict[int | str, Any] | None = None
    rotate: bool | dict[str, Any] = False
    backend: str | None = None
    backend_extra_args: dict[str, Any] | None = None
    learn_amax: bool = False
    calibrator: Any = "max"
    trt_high_precision_dtype: str = "Float"

    @field_validator("block_sizes", "bias")
    @classmethod
    def _integer_axes(cls, value: dict[int | str, Any] | None) -> dict[int | str, Any] | None:
        """Read axes that JSON turned into strings."""
        if value is None:
            return None
        return {int(k) if isinstance(k, str) and k.lstrip("-").isdigit() else k: v for k, v in value.items()}

    def pinned_amax(self) -> float | None:
        """Return the constant amax, or None when it is calibrated."""
        if self.use_constant_amax and self.constant_amax is not None:
            raise ConfigError(
                f"use_constant_amax excludes constant_amax={self.constant_amax}; give one of them"
            )
        return E4M3_MAX if self.use_constant_amax else self.constant_amax

    def to_spec(self) -> QuantSpec:
        """Return the format that these attributes mean.

        Raises:
            ConfigError: attributes contradict each other.
            UnsupportedError: an attribute is not available in this version.
        """
        for name, unused in _UNAVAILABLE.items():
            if getattr(self, name) != unused:
                raise UnsupportedError(
                    f"{name}={getattr(self, name)!r} is not available in this version of Octavo"
                )
        spec = self._spec(self._element_name())
        if not spec.state and self.pinned_amax() is not None:
            raise ConfigError(
                f"constant_amax={self.pinned_amax()} pins what calibration would find, and {spec} is never "
                "calibrated; leave it out, or use type='static'"
            )
        return spec

    def to_calibrator(self) -> Calibrator:
        """Return how calibration chooses `amax`.

        Raises:
            ConfigError: it is unknown, finds nothing that the format needs, or the amax is constant.
            UnsupportedError: the constructor of a class of one's own is not available.
        """
        if not isinstance(self.calibrator, (str, dict)):
            raise UnsupportedError(
                f"calibrator={self.calibrator!r} is not available in this version of Octavo; give a name or a dict "
                "with 'method'"
            )
        calibrator = Calibrator.from_json(self.calibrator)
        calibrator.check(self.to_spec())
        if calibrator.method != "max" and self.pinned_amax() is not None:
            raise ConfigError(
                f"calibrator {calibrator.method!r} excludes constant_amax={self.pinned_amax()}; give one of them"
            )
        return calibrator

    def to_bias(self) -> Bias | None:
        """Return what is subtracted before rounding, or None.

        Raises:
            ConfigError, UnsupportedError: it is wrong, or not available; or the amax is constant.
        """
        bias = read_bias(self.bias)
        if bias is not None and self.pinned_amax() is not None:
            raise ConfigError(
                f"bias={self.bias!r} excludes constant_amax={self.pinned_amax()}, which says that nothing is "
                "calibrated; give one of them"
            )
        return bias

    def to_rotation(self) -> Rotation | None:
        """Return how the tensor is rotated before it is rounded, or None.

        Raises:
            ConfigError: an option is unknown or has a wrong value.
        """
        return read_rotation(self.rotate)

    def _spec(self, element: str) -> QuantSpec:
        if self.block_sizes is None:
            return QuantSpec(element, self._axis_granularity(), dynamic=self.type == "dynamic")
        if self.axis is not None:
            raise ConfigError(f"axis={self.axis} excludes block_sizes={self.block_sizes}; give one of them")
        return self._block_spec(element, self.block_sizes)

    def _element_name(self) -> str:
        if not isinstance(self.num_bits, int):
            for option in ("unsigned", "narrow_range"):
                if getattr(self, option):
                    raise ConfigError(
                        f"{option}=True is for an integer width such as num_bits=8, found num_bits={self.num_bits!r}"
                    )
        if isinstance(self.num_bits, str):
            return element_type(self.num_bits).name
        if isinstance(self.num_bits, tuple):
            if self.num_bits not in _FLOAT_NAMES:
                known = ", ".join(map(str, _FLOAT_NAMES))
                raise UnsupportedError(
                    f"num_bits={self.num_bits}: the (exponent, mantissa) pairs are {known}"
                )
            return _FLOAT_NAMES[self.num_bits]
        name = f"{'u' if self.unsigned else ''}int{self.num_bits}{'_narrow' if self.narrow_range else ''}"
        return element_type(name).name

    def _axis_granularity(self) -> Granularity:
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis or ())
        if len(axes) > 1:
            raise UnsupportedError(
                f"axis={axes}: one axis with scales of its own is available, several are not"
            )
        return PerChannel(axes[0]) if axes else PerTensor()

    def _block_spec(self, element: str, block_sizes: dict[int | str, Any]) -> QuantSpec:
        options = {key: value for key, value in block_sizes.items() if isinstance(key, str)}
        for key in options.keys() - set(_BLOCK_OPTIONS):
            raise ConfigError(f"unknown option {key!r} of block_sizes.{nearest(key, _BLOCK_OPTIONS)}")
        if options.get("scale_block_sizes"):
            raise UnsupportedError(
                f"block_sizes['scale_block_sizes']={options['scale_block_sizes']!r} is not available in this version"
            )
        lengths = {key: value for key, value in block_sizes.items() if isinstance(key, int)}
        dynamic = self._is_dynamic(options.get("type", self.type))
        granularity: Granularity = PerToken()
        if lengths != {-1: None}:
            if not lengths or not all(isinstance(length, int) for length in lengths.values()):
                raise ConfigError(
                    f"block_sizes={block_sizes}: lengths must be integers, or None for {{-1: None}}"
                )
            granularity = PerBlock(tuple(lengths.items()))
        scale = self._scale_type(options.get("scale_bits"))
        if scale == "e8m0" and not dynamic:
            raise ConfigError("e8m0 scales are computed from the values at hand: use type='dynamic'")
        largest_scale = FOUR_OVER_SIX_MAX if options.get("four_over_six") else E4M3_MAX
        if options.get("four_over_six") and (scale != "e4m3" or dynamic):
            raise ConfigError(
                "four_over_six chooses among static E4M3 block scales: use type='static' and scale_bits=(4, 3), found "
                f"block_sizes={block_sizes}"
            )
        global_max = element_type(element).max * largest_scale if scale == "e4m3" else None
        rounding = options.get("scale_rounding", "ceil")
        return QuantSpec(element, granularity, scale, global_max, dynamic, scale_rounding=rounding)

    def _is_dynamic(self, block_type: Any) -> bool:
        if block_type not in ("static", "dynamic"):
            raise ConfigError(f"block_sizes['type']={block_type!r}; expected 'static' or 'dynamic'")
        if self.type == "dynamic" and block_type == "static":
            raise ConfigError("type='dynamic' excludes block_sizes['type']='static'; give one of them")
        return bool(block_type == "dynamic")

    @staticmethod
    def _scale_type(scale_bits: Any) -> ScaleType:
        match scale_bits:
            case None:
                return "float32"
            case (4, 3) | [4, 3]:
                return "e4m3"
            case (8, 0) | [8, 0]:
                return "e8m0"
        raise ConfigError(f"scale_bits={scale_bits!r}; expected (4, 3) for E4M3 or (8, 0) for E8M0 scales")


def parse_attributes(data: dict[str, Any], where: str) -> QuantizerAttributes:
    """Read attributes from a config.

    Args:
        data: Attribute names and values.
        where: The entry they come from, for messages.

    Raises:
        ConfigError: a name is unknown or a value has the wrong type; the nearest name is offered.
    """
    fields = QuantizerAttributes.model_fields
    for name in data.keys() - fields.keys():
        raise ConfigError(f"{where}: unknown quantizer attribute {name!r}.{nearest(str(name), fields)}")
    try:
        return QuantizerAttributes.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{where}: {name}={problem['input']!r}: {problem['msg']}") from error
