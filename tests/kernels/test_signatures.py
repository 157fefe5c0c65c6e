"""Every kernel takes the arguments of its operator's schema, also those of devices that are not here."""

from __future__ import annotations

import inspect

import pytest
import torch

from octavo.core.ops.kernels import all_kernels
from octavo.core.ops.schema import LIBRARY

KERNELS = [
    pytest.param(operator, function, id=f"{kernels.name}-{operator}")
    for kernels in all_kernels()
    for operator, function in kernels.operators().items()
]


def test_there_are_kernels_for_both_kinds_of_device() -> None:
    assert {kernels.device_type for kernels in all_kernels()} == {"cpu", "cuda"}


@pytest.mark.parametrize(("operator", "function"), KERNELS)
def test_it_takes_the_arguments_of_the_schema(operator: str, function: object) -> None:
    schema = getattr(getattr(torch.ops, LIBRARY.ns), operator).default._schema

    taken = list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert taken == [argument.name for argument in schema.arguments]
