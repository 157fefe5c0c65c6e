"""Which kernels compute each operator on each kind of device, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from octavo.core.ops.kernels import REFERENCE, Kernels, all_kernels, candidates, selected, unselected
from octavo.core.ops.schema import SCHEMAS

OPERATORS = tuple(schema.partition("(")[0] for schema in SCHEMAS)


@dataclass(frozen=True)
class Implementation:
    """What computes one operator on one kind of device.

    Attributes:
        device_type: torch's name of the devices.
        operator: Name of the operator.
        runs: The kernels that are asked first, or `reference`.
        others: Why each other one does not run, by name.
        left: Why `runs` leaves formats to the reference, by their chains.
    """

    device_type: str
    operator: str
    runs: str
    others: Mapping[str, str]
    left: Mapping[str, str]


def implementations(chains: Sequence[str] = ()) -> Iterator[Implementation]:
    """Yield what computes each operator on each kind of device that there are kernels for.

    Args:
        chains: Chains of formats that each implementation is asked about.

    Raises:
        ConfigError: `OCTAVO_KERNELS` names kernels that do not exist.
    """
    selected()
    for device_type in sorted({"cpu", *(kernels.device_type for kernels in all_kernels())}):
        missing = {
            kernels.name: kernels.missing() or unselected(kernels) for kernels in candidates(device_type)
        }
        for operator in OPERATORS:
            yield _implementation(device_type, operator, missing, chains)


def _implementation(
    device_type: str, operator: str, missing: Mapping[str, str | None], chains: Sequence[str]
) -> Implementation:
    chosen: Kernels | None = None
    others: dict[str, str] = {}
    for kernels in candidates(device_type):
        reason = missing[kernels.name]
        if reason is None and operator not in kernels.operators():
            reason = "does not compute it"
        if reason is None and chosen is not None:
            reason = f"asked after {chosen.name}"
        if reason is None:
            chosen = kernels
        else:
            others[kernels.name] = reason
    if chosen is None:
        return Implementation(device_type, operator, REFERENCE, others, {})
    left = {chain: why for chain in chains if (why := chosen.declines(operator, chain)) is not None}
    return Implementation(device_type, operator, chosen.name, others, left)
