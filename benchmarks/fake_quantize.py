"""Fake quantization of a 4096 x 4096 bf16 weight: fused kernels beside the plain-torch reference, a copy and torchao.

Run: python benchmarks/fake_quantize.py [--json] [--repeats N] [--threads N] [--cases GLOBS] [--peer PYTHON]

--peer names the Python of an environment with torchao==0.18.0, whose rows come from the same run. Results of kernels
must equal the reference's byte for byte before anything is timed. Medians; what is compared is timed in turn. `ms` is
the wall clock, `CPU ms` that of all threads. Everything runs in memory that was used before (glibc keeps what is
freed, by MALLOC_ variables): the pages of fresh memory cost more than any of this, a copy included. The same on a GPU,
if there is one, with the kernels for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from octavo.core import ops
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec
from octavo.core.ops.kernels import using

SIZE = 4096
PEER = str(Path(__file__).with_name("peer_torchao_fake_quantize.py"))
SQUARES = PerBlock(((-1, 128), (-2, 128)))
# case -> (format, how many copies it may cost)
CASES = {
    "FP8 tensor": (QuantSpec("e4m3"), 2),
    "FP8 channel": (QuantSpec("e4m3", PerChannel(0)), 2),
    "FP8 128x128": (QuantSpec("e4m3", SQUARES), 2),
    "FP8 token, dynamic": (QuantSpec("e4m3", PerToken(), dynamic=True), 2),
    "INT8 tensor": (QuantSpec("int8"), 2),
    "INT8 channel": (QuantSpec("int8", PerChannel(0)), 2),
    "INT8 token, dynamic": (QuantSpec("int8", PerToken(), dynamic=True), 2),
    "INT4 g128": (QuantSpec("int4", PerBlock(((-1, 128),))), 2),
    "NVFP4": (QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0), 4),
    "NVFP4, dynamic": (QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True), 4),
    "MXFP4": (QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True), 4),
    "MXFP6": (QuantSpec("e3m2", PerBlock(((-1, 32),)), "e8m0", dynamic=True), 4),
    "MXFP8": (QuantSpec("e4m3", PerBlock(((-1, 32),)), "e8m0", dynamic=True), 4),
}
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=15)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--cases", default="*", help="globs, separated by semicolons")
    arguments.add_argument("--peer", help="Python with torchao")
    options = arguments.parse_args()
    if KEPT_MEMORY.keys() - os.environ.keys():  # glibc reads them when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT_MEMORY})
    torch.set_num_threads(options.threads)
    globs = options.cases.split(";")
    cases = [case for case in CASES if any(fnmatch.fnmatch(case, glob) for glob in globs)]
    rows = []
    for device in ("cpu", "cuda"):
        if device == "cpu" or torch.cuda.is_available():
            rows += [measure(case, device, options.repeats) for case in cases]
        else:
            print(f"{device}: not measured, there is none", file=sys.stderr)
    if options.peer is not None:
        add_peer(rows, cases, options)
    print(json.dumps(rows, indent=2)) if options.json else print_table(rows, options.threads)


def measure(case: str, device: str, repeats: int) -> dict[str, Any]:
    """Return the milliseconds of a case, after comparing the kernels' result with the reference's."""
    spec, aim = CASES[case]
    x = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)
    target = torch.empty_like(x)
    known = {"amax": ops.amax(x, spec), "global_amax": x.abs().max().float()}
    state = [known[name] for name in spec.state]

    def run() -> Tensor:
        return ops.fake_quantize(x, state, spec.key)

    def reference() -> Tensor:
        with using("reference"):
            return run()

    if not torch.equal(run().view(torch.int16), reference().view(torch.int16)):
        sys.exit(f"{case} on {device}: kernels and reference differ")
    found = timed(
        {
            "copy": lambda: target.copy_(x),
            "fused": run,
            "reference": reference,
        },
        device,
        repeats,
    )
    row: dict[str, Any] = {"case": case, "device": device, "aim_copies": aim}
    row |= {f"{name}_ms": wall for name, (wall, _) in found.items()}
    row |= {f"{name}_cpu_ms": cpu for name, (_, cpu) in found.items()}
    return row | {
        "speedup": row["reference_ms"] / row["fused_ms"],
        "copies": row["fused_ms"] / row["copy_ms"],
    }


def timed(
    calls: dict[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of each call, of the wall clock and of all threads, timed in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: tuple(1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in times.items()
    }


def add_peer(rows: list[dict[str, Any]], cases: list[str], options: argparse.Namespace) -> None:
    """Add torchao's milliseconds to the rows of the CPU."""
    command = [options.peer, PEER, json.dumps(cases), str(SIZE), str(options.repeats), str(options.threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{options.peer} failed:\n{result.stderr[-1000:]}")
    found = json.loads(result.stdout.splitlines()[-1])
    for row in rows:
        if row["device"] == "cpu":
            row["torchao_ms"] = found.get(row["case"])


def print_table(rows: list[dict[str, Any]], threads: int) -> None:
    table = Table(title=f"fake quantization, {SIZE} x {SIZE} bf16, {threads} CPU threads")
    for column in (
        "case",
        "device",
        "ms",
        "CPU ms",
        "reference ms",
        "speedup",
        "torchao ms",
        "copies",
        "aim",
    ):
        table.add_column(column)
    for row in rows:
        peer = row.get("torchao_ms")
        table.add_row(
            row["case"],
            row["device"],
            f"{row['fused_ms']:.2f}",
            f"{row['fused_cpu_ms']:.2f}",
            f"{row['reference_ms']:.1f}",
            f"{row['speedup']:.1f}",
            "-" if peer is None else f"{peer:.1f}",
            f"{row['copies']:.2f}",
            str(row["aim_copies"]),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
