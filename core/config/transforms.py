"""The attributes `bias` and `rotate` of a quantizer, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.config.rules import Attributes
from octavo.core.errors import ConfigError, UnsupportedError, nearest
from octavo.core.quantizers.bias import METHODS, Bias
from octavo.core.quantizers.rotation import Rotation

_BIAS_OPTIONS = {"type": ("static", "dynamic"), "method": METHODS}
_ROTATE_OPTIONS = ("enable", "mode", "rotate_fp32", "block_size")
_MODES = ("rotate", "rotate_back")


def read_bias(data: Mapping[int | str, Any] | None) -> Bias | None:
    """Read `bias`: {negative axis: None, …} of the dims that share one, with `type` and `method`.

    Raises:
        ConfigError: an option is unknown or wrong, an axis is not negative, or there is none.
        UnsupportedError: an axis has blocks.
    """
    if data is None:
        return None
    options = {key: value for key, value in data.items() if isinstance(key, str)}
    for key, value in options.items():
        if key not in _BIAS_OPTIONS:
            raise ConfigError(f"unknown option {key!r} of bias.{nearest(key, _BIAS_OPTIONS)}")
        if value not in _BIAS_OPTIONS[key]:
            raise ConfigError(f"bias[{key!r}]={value!r}; expected one of {', '.join(_BIAS_OPTIONS[key])}")
    axes = {key: value for key, value in data.items() if isinstance(key, int)}
    if not axes or max(axes) >= 0:
        raise ConfigError(
            f"bias={dict(data)!r}: name the dims that share one by negative numbers, such as {{-2: None, -4: None}}"
        )
    if any(value is not None for value in axes.values()):
        raise UnsupportedError(
            f"bias={dict(data)!r}: biases of blocks are not available; use None for whole dims"
        )
    return Bias(tuple(sorted(axes)), options.get("method", "mean"), options.get("type") == "dynamic")


def read_rotation(data: bool | Mapping[str, Any]) -> Rotation | None:
    """Read `rotate`: True, or a dict with `enable` and options. Sums are fp32, whether `rotate_fp32` is set or not.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """
    if isinstance(data, bool):
        return Rotation() if data else None
    for key in data.keys() - set(_ROTATE_OPTIONS):
        raise ConfigError(f"unknown option {key!r} of rotate.{nearest(str(key), _ROTATE_OPTIONS)}")
    mode, block = data.get("mode", "rotate"), data.get("block_size")
    if mode not in _MODES:
        raise ConfigError(f"rotate['mode']={mode!r}; expected one of {', '.join(_MODES)}")
    if block is not None and (type(block) is not int or block < 2 or block.bit_count() != 1):
        raise ConfigError(f"rotate['block_size']={block!r}; expected a power of two, 2 or more, or None")
    return Rotation(block, mode == "rotate_back") if data.get("enable") else None


def transform_attributes(bias: Bias | None, rotation: Rotation | None) -> Attributes:
    """Return the attributes that `read_bias` and `read_rotation` read as these."""
    attributes: Attributes = {}
    if bias is not None:
        kind = "dynamic" if bias.dynamic else "static"
        attributes["bias"] = {**dict.fromkeys(bias.axes), "type": kind, "method": bias.method}
    if rotation is not None:
        mode = "rotate_back" if rotation.back else "rotate"
        attributes["rotate"] = {"enable": True, "mode": mode, "block_size": rotation.block_size}
    return attributes
