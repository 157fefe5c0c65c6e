"""Where an export spends CPU seconds, stage by stage, over all threads, between two `save_file` of the plain weights.

Run: python benchmarks/export_stages.py [--repeats N] [--layers N] [--case NAME] [--folder DIR]

The model and the turns are those of export_speed.py, in one process, with one thread of torch. A stage's seconds are
those of its own thread, the system's work for it included, without the stages inside it; what no stage has is `rest`.
Which comes first matters to `save_file`: what the system's free pages cost depends on how long they have been free.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_workload as workload
import safetensors.torch
import torch

import octavo
from octavo.core.model import model_source, read_back, shards
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.packed import PackedTensor
from octavo.core.report.weight_error import WeightErrors

# The stages: what is called, and by which name whoever calls it finds it.
STAGES = {
    "codes": (PackedTensor, "pack"),
    "errors": (WeightErrors, "add"),
    "finite": (model_source, "is_finite"),
    "SHA-256": (ManifestEntry, "of"),
    "writing": (safetensors.torch, "save_file"),
    "comparing": (read_back, "_is_same"),
    "flushing": (shards, "flush_to_disk"),
    "rest": (octavo, "export_hf_checkpoint"),
}


class Clock:
    """Adds up the CPU seconds of stages.

    Attributes:
        seconds: By stage.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = threading.local()
        self._lock = threading.Lock()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, with its own seconds added to a stage."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outer, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                with self._lock:
                    self.seconds[stage] += spent - self._inside.seconds
                self._inside.seconds = outer + spent

        return wrapper


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--case", default="FP8", choices=workload.CASES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    for stage, (holder, name) in STAGES.items():
        timed = clock.timed(stage, getattr(holder, name))
        setattr(holder, name, staticmethod(timed) if stage in ("codes", "SHA-256") else timed)
    with tempfile.TemporaryDirectory(dir=options.folder) as directory:
        folder = Path(directory, "model")
        workload.write_model(folder, options.layers)
        turns = [turn(clock, folder, options.case) for _ in range(options.repeats + 1)][1:]
    print("CPU s: least, median")
    for stage in (*STAGES, "export", "save before", "save after"):
        found = [seconds[stage] for seconds in turns]
        print(f"{stage:12}{min(found):8.3f}{statistics.median(found):8.3f}")


def turn(clock: Clock, folder: Path, case: str) -> dict[str, float]:
    """Return the seconds of each stage of one export, and of `save_file` before and after it."""
    place = folder.with_name("written")
    model = workload.read_model(folder)
    plain = {name: parameter.data for name, parameter in model.named_parameters()}
    save = functools.partial(
        workload.timed, functools.partial(safetensors.torch.save_file, plain, place), place
    )
    export = functools.partial(octavo.export_hf_checkpoint, model, export_dir=place, quiet=True)
    before = save()["cpu"]
    octavo.quantize(
        model, octavo.preset(workload.CASES[case]), forward_loop=workload.forward_loop, quiet=True
    )
    clock.seconds.clear()
    workload.timed(export, place)
    stages = dict(clock.seconds)
    return stages | {"export": sum(stages.values()), "save before": before, "save after": save()["cpu"]}


if __name__ == "__main__":
    main()
