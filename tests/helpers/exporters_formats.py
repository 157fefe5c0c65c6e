"""Formats of weights and inputs by short names: those that the dialect stores, and their near misses."""

from __future__ import annotations

from octavo.core.formats import Granularity, PerBlock, PerChannel, PerTensor, PerToken, QuantSpec
from octavo.core.model.exporter import LayerFormat
from octavo.exporters.unified_hf.schemes import Scheme


def block(length: int) -> PerBlock:
    return PerBlock(((-1, length),))


def mx(element: str, length: int = 32) -> QuantSpec:
    return QuantSpec(element, block(length), "e8m0", dynamic=True)


def nvfp4(length: int = 16, granularity: Granularity | None = None, dynamic: bool = True) -> QuantSpec:
    return QuantSpec("e2m1", granularity or block(length), "e4m3", 2688.0, dynamic)


def fp8(granularity: Granularity, dynamic: bool = False) -> QuantSpec:
    return QuantSpec("e4m3", granularity, dynamic=dynamic)


def square(length: int) -> PerBlock:
    return PerBlock(((-1, length), (-2, length)))


WEIGHTS = {
    "fp8": fp8(PerTensor()),
    "fp8 channel": fp8(PerChannel(0)),
    "fp8 input channel": fp8(PerChannel(1)),
    "fp8 token": fp8(PerToken()),
    "fp8 square": fp8(square(128)),
    "fp8 square 64": fp8(square(64)),
    "fp8 block": fp8(block(128)),
    "e5m2": QuantSpec("e5m2"),
    "int8": QuantSpec("int8"),
    "int8 channel": QuantSpec("int8", PerChannel(0)),
    "int8 narrow channel": QuantSpec("int8_narrow", PerChannel(0)),
    "int8 block": QuantSpec("int8", block(128)),
    "int4 block": QuantSpec("int4", block(128)),
    "int4 block 32": QuantSpec("int4", block(32)),
    "int4 square": QuantSpec("int4", square(128)),
    "int4 channel": QuantSpec("int4", PerChannel(0)),
    "uint4 block": QuantSpec("uint4", block(128)),
    "nvfp4": nvfp4(),
    "nvfp4 static": nvfp4(dynamic=False),
    "nvfp4 32": nvfp4(32),
    "nvfp4 square": nvfp4(granularity=square(16)),
    "e4m3 in nvfp4's scales": QuantSpec("e4m3", block(16), "e4m3", 448.0, dynamic=True),
    "mxfp8": mx("e4m3"),
    "mxfp8 16": mx("e4m3", 16),
    "mx e5m2": mx("e5m2"),
    "mxfp6": mx("e3m2"),
    "mx e2m3": mx("e2m3"),
    "mxfp4": mx("e2m1"),
    "mxfp4 16": mx("e2m1", 16),
    "mxint8": mx("int8"),
}
INPUTS = {
    "none": None,
    "fp8": fp8(PerTensor()),
    "fp8 dynamic": fp8(PerTensor(), dynamic=True),
    "fp8 token": fp8(PerToken(), dynamic=True),
    "e5m2": QuantSpec("e5m2"),
    "int8": QuantSpec("int8"),
    "int8 dynamic": QuantSpec("int8", dynamic=True),
    "int8 token": QuantSpec("int8", PerToken(), dynamic=True),
    "nvfp4": nvfp4(),
    "nvfp4 32": nvfp4(32),
    "mxfp8": mx("e4m3"),
    "mxfp6": mx("e3m2"),
    "mxfp4": mx("e2m1"),
    "mxint8": mx("int8"),
}


def layer_of(scheme: Scheme, length: int) -> LayerFormat:
    """Return the format of layers that a scheme stores, with blocks of `length` where that is open."""
    weight = scheme.weight_with_block(length)
    return LayerFormat(weight, scheme.inputs, scheme.then, scheme.smoothing)  # type: ignore[arg-type]
