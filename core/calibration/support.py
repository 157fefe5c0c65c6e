"""Which algorithms know which weight formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from octavo.core.errors import UnsupportedError
from octavo.core.formats import PerBlock, QuantSpec
from octavo.core.model.sharded import check_whole
from octavo.core.modules import quantized_layers

if TYPE_CHECKING:
    from octavo.core.calibration.algorithm import Algorithm

INT = "INT"  # one scale for a row or the tensor
INT_BLOCKS = "INT blocks"
FP8 = "FP8"
NVFP4_STATIC = "NVFP4 static"
NVFP4 = "NVFP4"
MX = "MX"
FAMILIES = (INT, INT_BLOCKS, FP8, NVFP4_STATIC, NVFP4, MX)


def family_of(spec: QuantSpec) -> str:
    """Return the family of a weight's format."""
    if spec.scale == "e8m0":
        return MX
    if spec.scale == "e4m3":
        return NVFP4 if spec.dynamic else NVFP4_STATIC
    if spec.element_type.is_float:
        return FP8
    return INT_BLOCKS if isinstance(spec.unstacked().granularity, PerBlock) else INT


def check_supported(model: nn.Module, algorithms: Sequence[Algorithm]) -> None:
    """Refuse algorithms that do not know the format of a weight.

    Raises:
        UnsupportedError: the weight, the format and all that is supported are in the message.
    """
    for name, layer in quantized_layers(model):
        for slot in layer.weight_slots():
            for stage in layer.quantizers()[slot.quantizer].stages():
                if not stage.enabled or stage.spec is None:
                    continue
                for algorithm in algorithms:
                    family = family_of(stage.spec)
                    if family not in algorithm.solves | algorithm.leaves:
                        where = f"{name}.{slot.quantizer}".removeprefix(".")
                        raise UnsupportedError(
                            f"{where}: algorithm {algorithm.method!r} does not know {family} weights, found "
                            f"{stage.spec}; choose another algorithm or format for this layer:\n{matrix()}"
                        )


def check_gathers(model: nn.Module, algorithms: Sequence[Algorithm]) -> None:
    """Refuse algorithms that need whole weights, where FSDP2 or ZeRO-3 has divided them among ranks.

    Raises:
        UnsupportedError: the algorithm and the first divided parameter are named.
    """
    for algorithm in algorithms:
        if algorithm.layerwise.enable:
            check_whole(model, "layerwise calibration")
        elif not algorithm.gathers_weights:
            check_whole(model, f"the algorithm {algorithm.method!r}")


def support() -> list[tuple[str, ...]]:
    """Return a row for each algorithm, its name and what it does with each family.

    `yes`, `max` (weights keep the scales that they have, and the report says so) or `-` (refused).
    """
    from octavo.core.calibration.algorithms import algorithm_named, known_algorithms

    return [
        (name, *(_cell(algorithm_named(name), family) for family in FAMILIES))
        for name in sorted(known_algorithms())
    ]


def matrix() -> str:
    """Return `support` as a table in plain text."""
    rows = [("", *FAMILIES), *support()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cell(algorithm: type[Algorithm], family: str) -> str:
    if family in algorithm.solves:
        return "yes"
    return "max" if family in algorithm.leaves else "-"
