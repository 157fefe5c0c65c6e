"""Bandwidth of fake quantization, and of quantizing and packing, on a GPU, beside a copy on the device.

Run: python benchmarks/gpu_kernels.py [--json] [--rows 8192] [--columns 8192]

Each result is checked first, bit for bit, against the reference on the CPU. Bandwidth counts what a call must read and
write: the values once, and the result (scales included); a copy of the same values in the same run reads and writes
them once. Medians of many calls, each after the L2 cache was overwritten. The reference on the GPU is timed, too.
Without a GPU nothing is measured, and this says so. Default launches are timed; OCTAVO_AUTOTUNE=1 tries others first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from octavo.core import ops
from octavo.core.formats import PerBlock, PerChannel, PerToken, QuantSpec, compute_amax
from octavo.core.ops.kernels import using

Call = Callable[[], Any]
FORMATS = {
    "FP8 tensor": QuantSpec("e4m3"),
    "FP8 token, dynamic": QuantSpec("e4m3", PerToken(), dynamic=True),
    "FP8 128x128": QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128)))),
    "INT8 channel": QuantSpec("int8", PerChannel(0)),
    "INT4 g128": QuantSpec("int4", PerBlock(((-1, 128),))),
    "NVFP4": QuantSpec("e2m1", PerBlock(((-1, 16),)), "e4m3", 2688.0, dynamic=True),
    "MXFP4": QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
    "MXFP6": QuantSpec("e3m2", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
    "MXFP8": QuantSpec("e4m3", PerBlock(((-1, 32),)), "e8m0", dynamic=True),
}
AIMS = {"FP8 tensor": 0.9, "INT8 channel": 0.9, "NVFP4": 0.6, "MXFP4": 0.6}  # share of a copy's bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=8192)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"gpu_kernels": "not measured: no CUDA device"}))
        return
    x = torch.randn(options.rows, options.columns, device="cuda", dtype=torch.bfloat16)
    rows = measure(x)
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "gpu_kernels": rows}, indent=2))
    else:
        print_table(rows)


def measure(x: Tensor) -> list[dict[str, Any]]:
    """Return a row for the copy, and for each format and operation."""
    copy = torch.empty_like(x)
    rows = [row("copy", "", lambda: copy.copy_(x), [x, copy])]
    for name, spec in FORMATS.items():
        known = {"amax": compute_amax(x, spec), "global_amax": x.float().abs().max()}
        state = [known[part] for part in spec.state]
        check(name, spec, x, state)
        for operation, call in operations(x, spec, state).items():
            rows.append(row(name, operation, call, [x, *flat(call())]))
    for one in rows:
        one["of_copy"] = one["gb_per_s"] / rows[0]["gb_per_s"]
        one["aim"] = AIMS.get(one["format"])
    return rows


def operations(x: Tensor, spec: QuantSpec, state: Sequence[Tensor]) -> dict[str, Call]:
    return {
        "fake-quantize": lambda: ops.fake_quantize(x, state, spec.key),
        "quantize and pack": lambda: ops.quantize(x, state, spec),
    }


def check(name: str, spec: QuantSpec, x: Tensor, state: Sequence[Tensor]) -> None:
    """Compare the bits of the first 256 rows, whose blocks are whole, with the reference on the CPU."""
    part = x[:256].cpu()
    known = [tensor.cpu() for tensor in state]
    if spec.state[:1] == ("amax",) and known[0].dim() > 0:
        known[0] = known[0][: spec.granularity.scale_shape(part.shape)[0]]
    for operation in operations(part, spec, known):
        with using("reference"):
            expected = operations(part, spec, known)[operation]()
        with using("triton"):
            found = operations(part.cuda(), spec, [tensor.cuda() for tensor in known])[operation]()
        for a, b in zip(flat(found), flat(expected), strict=True):
            assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8)), f"{operation} {name}"


def row(name: str, operation: str, call: Call, moved: Sequence[Tensor]) -> dict[str, Any]:
    """Return times in microseconds, and the bandwidth of a call that reads and writes the tensors `moved`."""
    from triton.testing import do_bench

    us = 1000 * do_bench(call, return_mode="median")
    with using("reference"):
        reference_us = 1000 * do_bench(call, return_mode="median")
    size = sum(tensor.numel() * tensor.element_size() for tensor in moved)
    bandwidth = size / us / 1000
    return {
        "format": name,
        "operation": operation,
        "us": us,
        "reference_us": reference_us,
        "gb_per_s": bandwidth,
    }


def flat(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part.reshape(-1).contiguous() for part in parts if part is not None]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=torch.cuda.get_device_name())
    for column in ("format", "operation", "us", "reference us", "GB/s", "of a copy", "aim"):
        table.add_column(column, justify="right" if column not in ("format", "operation") else "left")
    for one in rows:
        times = f"{one['us']:.1f}", f"{one['reference_us']:.1f}", f"{one['gb_per_s']:.0f}"
        aim = "" if one["aim"] is None else f"{one['aim']:.0%}"
        table.add_row(one["format"], one["operation"], *times, f"{one['of_copy']:.0%}", aim)
    Console().print(table)


if __name__ == "__main__":
    main()
