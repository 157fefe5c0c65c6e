"""What the scripts of this folder share: joining the other rank, and handing results to the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from octavo.core.errors import OctavoError

FOLDER = Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]


@contextmanager
def joined() -> Iterator[int]:
    """Join the process group and yield the rank; who waits for a rank that is gone gives up after a while."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=40))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def report(**results: Any) -> None:
    """Hand JSON-ready results of rank 0 to the test."""
    if dist.get_rank() == 0:
        (FOLDER / "result.json").write_text(json.dumps(results))


def of_all_ranks(value: Any) -> list[Any]:
    """Return every rank's `value`."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def refusal(function: Callable[[], object]) -> str:
    """Return the message of the `OctavoError` that `function` must end with."""
    try:
        function()
    except OctavoError as error:
        return str(error)
    return "no error"
