"""How the dialect describes one tensor's format: strategies, and the `QuantizationArgs` of its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.core.errors import CheckpointError
from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantSpec

NVFP4 = QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True)
_SQUARE = PerBlock(((-1, 128), (-2, 128)))
_MX_LENGTH = 32
_E8M0, _E4M3 = "torch.uint8", "torch.float8_e4m3fn"  # how metadata spells the dtypes of block scales
# Strategies of ours whose block scales have a type of their own: the dialect's name, what it calls the inputs'
# `dynamic`, and the scales' dtype.
_BLOCK_SCALES: dict[str, tuple[str, bool | str, str]] = {
    "mx": ("group", True, _E8M0),
    "nvfp4": ("tensor_group", "local", _E4M3),
}
_PLAIN: dict[Granularity, str] = {
    PerTensor(): "tensor", PerChannel(0): "channel", PerToken(): "token", _SQUARE: "block",
}  # fmt: skip
_FLOATS = {8: "e4m3", 6: "e2m3", 4: "e2m1"}
_READ = (
    "Read are int codes of 2 to 8 bits and float codes of 4, 6 and 8, with scales per tensor, channel, token, group or "
    "block of 128x128; groups of 16 or 32 for 4 bits, of 32 for 6; zero points of weights in groups or channels only; "
    "actorder weight or static"
)


def strategy(spec: QuantSpec) -> str:
    """Return how scales lie in a tensor; what the dialect has no name for, in Octavo's words.

    The dialect's own names, but for `mx` (groups of 32 with E8M0 scales) and `nvfp4` (groups of 16 with E4M3 scales
    and one of the whole tensor).
    """
    granularity = spec.granularity
    if not (isinstance(granularity, PerBlock) and [axis for axis, _ in granularity.sizes] == [-1]):
        return _PLAIN.get(granularity, str(spec)) if spec.scale == "float32" else str(spec)
    length = granularity.sizes[0][1]
    if spec.scale == "float32":
        return "group"
    if spec.scale == "e8m0":
        return "mx" if length == _MX_LENGTH else str(spec)
    return "nvfp4" if granularity == NVFP4.granularity and spec.element == NVFP4.element else str(spec)


def as_input(spec: QuantSpec) -> QuantSpec:
    """Return the format in which the library rounds an input: MXFP4 by `even` powers of two, MXFP8 by `ceil`."""
    if strategy(spec) != "mx":
        return spec
    return replace(spec, scale_rounding="even" if spec.element == "e2m1" else "ceil")


def has_block_scales(spec: QuantSpec) -> bool:
    """Whether a format is one of those whose block scales are no plain floats: MX and NVFP4."""
    return strategy(spec) in _BLOCK_SCALES


def arguments(spec: QuantSpec, is_input: bool = False, zero_points: bool = False) -> dict[str, Any]:
    """Return the `QuantizationArgs` that describe the format of a weight, or of an input."""
    name = strategy(spec)
    described: dict[str, Any] = {
        "num_bits": spec.element_type.bits,
        "type": "float" if spec.element_type.is_float else "int",
        "symmetric": not zero_points,
        "strategy": name,
        "dynamic": spec.dynamic,
    }
    if name in _BLOCK_SCALES:
        spelled, dynamic, scale_dtype = _BLOCK_SCALES[name]
        described |= {
            "strategy": spelled,
            "dynamic": dynamic if is_input else False,
            "scale_dtype": scale_dtype,
        }
    if spec.granularity == _SQUARE:
        described["block_structure"] = [128, 128]
    elif isinstance(spec.granularity, PerBlock):
        described["group_size"] = dict(spec.granularity.sizes)[-1]
    return described


def spec_from_arguments(found: Mapping[str, Any], where: str) -> QuantSpec:
    """Undo `arguments`; codes with zero points are unsigned.

    Raises:
        CheckpointError: they describe a format that is not read.
    """
    spec = _block_float(found) or _plain(found)
    if spec is None or found.get("actorder") not in (None, False, "weight", "static"):
        raise CheckpointError(f"{where} describes a format that is not read: {dict(found)}. {_READ}")
    return spec


def _block_float(found: Mapping[str, Any]) -> QuantSpec | None:
    """Return the format of floats with block scales that `found` describes, or None."""
    if not _is_float(found) or not found.get("symmetric", True):
        return None
    bits, length = int(found.get("num_bits", 8)), found.get("group_size")
    if (bits, length) == (4, 16):
        return NVFP4
    if length == _MX_LENGTH and (bits in (4, 6) or (bits == 8 and found.get("scale_dtype") == _E8M0)):
        return QuantSpec(_FLOATS[bits], PerBlock(((-1, length),)), scale="e8m0", dynamic=True)
    return None


def _plain(found: Mapping[str, Any]) -> QuantSpec | None:
    """Return the format of codes with float scales that `found` describes, or None."""
    bits, is_symmetric, granularity = (
        found.get("num_bits", 8),
        found.get("symmetric", True),
        _granularity(found),
    )
    if (
        granularity is None
        or (_is_float(found) and not (bits == 8 and is_symmetric))
        or bits not in range(2, 9)
    ):
        return None
    element = "e4m3" if _is_float(found) else f"{'' if is_symmetric else 'u'}int{bits}"
    return QuantSpec(element, granularity, dynamic=bool(found.get("dynamic")))


def _is_float(found: Mapping[str, Any]) -> bool:
    return str(found.get("type", "int")).lower() == "float"


def _granularity(found: Mapping[str, Any]) -> Granularity | None:
    length = found.get("group_size")
    is_group = isinstance(length, int) and length > 0
    inferred = "group" if is_group else "tensor" if length is None else "channel"
    name = str(found.get("strategy") or inferred).lower()
    if name == "group":
        return PerBlock(((-1, length),)) if is_group else None  # type: ignore[arg-type]
    if name == "block" and found.get("block_structure") != [128, 128]:
        return None
    return next((granularity for granularity, plain in _PLAIN.items() if plain == name), None)
