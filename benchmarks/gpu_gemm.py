"""Products with packed weights on a GPU, beside bf16 and what else multiplies such weights; microseconds for a call.

Run: python benchmarks/gpu_gemm.py [--json] [--rows 1,16,256,4096] [--out 8192] [--in 8192]

Each product is checked first against the product in fp64 of the values that codes and scales stand for. A call is
timed inside a CUDA graph, so that Python is not, with as many weights in turn as fill the L2 cache four times over:
no weight is still there when its turn comes. Medians of 20 runs of the graph. Peers in the same run: torch's bf16
linear, `torch._weight_int4pack_mm`, `torch._scaled_mm`, and torchao where it is installed. Without a GPU nothing is
measured, and this says so. Triton's default launches are timed; OCTAVO_AUTOTUNE=1 measures the others first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear

from octavo.core import formats, ops
from octavo.core.formats import PerBlock, PerChannel, PerToken, Quantized, QuantSpec, compute_amax
from octavo.core.ops.calls import NOTHING

BF16 = torch.bfloat16
GROUPS, BLOCKS = PerBlock(((-1, 128),)), PerBlock(((-1, 16),))
E4M3, INT8_TOKEN = QuantSpec("e4m3"), QuantSpec("int8", PerToken(), dynamic=True)
FORMATS = {  # of weights and of inputs
    "int4 g128": (QuantSpec("int4", GROUPS), None),
    "nvfp4": (QuantSpec("e2m1", BLOCKS, "e4m3", 2688.0), None),
    "mxfp4": (QuantSpec("e2m1", PerBlock(((-1, 32),)), "e8m0", dynamic=True), None),
    "int8 per channel": (QuantSpec("int8", PerChannel(0)), None),
    "fp8": (E4M3, None),
    "fp8 128x128": (QuantSpec("e4m3", PerBlock(((-1, 128), (-2, 128)))), None),
    "fp8, inputs fp8": (E4M3, E4M3),
    "int8, inputs int8": (QuantSpec("int8", PerChannel(0)), INT8_TOKEN),
}
Call = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", default="1,16,256,4096")
    parser.add_argument("--out", type=int, default=8192)
    parser.add_argument("--in", type=int, default=8192, dest="columns")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"gpu_gemm": "not measured: no CUDA device"}))
        return
    rows = [
        row for count in options.rows.split(",") for row in measure(int(count), options.out, options.columns)
    ]
    print_rows(rows, options.json)


def measure(count: int, num_out: int, num_in: int) -> list[dict[str, Any]]:
    """Return a row for each format and peer; `over_bf16` says how many times faster than bf16 it is."""
    x = torch.randn(count, num_in, device="cuda", dtype=BF16)
    base = timed(lambda w: lambda: linear(x, w), lambda: random_weight(num_out, num_in), 2 * num_out * num_in)
    rows = [{"rows": count, "weights": "bf16", "by": "torch", "us": base}]
    for name, (spec, x_spec) in FORMATS.items():
        us = timed(
            lambda w, s=spec, xs=x_spec: ours(x, w, s, xs),
            lambda s=spec: pack(random_weight(num_out, num_in), s),
            num_out * num_in * spec.element_type.bits // 8,
        )
        rows.append({"rows": count, "weights": name, "by": "octavo", "us": us})
    for name, by, call, make, size in peers(x, num_out, num_in):
        rows.append({"rows": count, "weights": name, "by": by, "us": timed(call, make, size)})
    for row in rows:
        row["over_bf16"] = base / row["us"]
    return rows


def ours(x: Tensor, weight: Quantized, spec: QuantSpec, x_spec: QuantSpec | None) -> Call:
    key = NOTHING if x_spec is None else x_spec.key
    state = [x.float().abs().max()] if x_spec is not None and x_spec.state else []
    call = lambda: ops.packed_linear(x, None, weight, spec, BF16, state, key)  # noqa: E731
    values = x.double() if x_spec is None else formats.fake_quantize(x.double(), state, x_spec)
    exact = (
        values @ formats.dequantize(*weight, spec, (weight.payload.shape[0], x.shape[-1]), BF16).double().T
    )
    error = (call().double() - exact).norm() / exact.norm()
    assert error < 2**-8, f"{spec}: relative error {error}"
    return call


def peers(x: Tensor, num_out: int, num_in: int) -> list[tuple[str, str, Any, Any, int]]:
    """Return (weights, by, call of a weight, maker of weights, bytes) of what this installation has."""
    size = num_out * num_in
    found: list[tuple[str, str, Any, Any, int]] = [
        (
            "int4 g128",
            "torch._weight_int4pack_mm",
            lambda w: int4_call(x, w),
            lambda: int4(num_out, num_in),
            size // 2,
        )
    ]
    if torch.cuda.get_device_capability() >= (8, 9):
        found.append(
            (
                "fp8, inputs fp8",
                "torch._scaled_mm",
                lambda w: fp8_call(x, w),
                lambda: fp8(num_out, num_in),
                size,
            )
        )
    try:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_
    except ImportError as error:
        print(f"torchao: not measured ({error})")
        return found

    def layer() -> torch.nn.Module:
        made = torch.nn.Linear(num_in, num_out, bias=False, device="cuda", dtype=BF16)
        quantize_(made, Int4WeightOnlyConfig(group_size=128))
        return made

    return [*found, ("int4 g128", "torchao", lambda made: lambda: made(x), layer, size // 2)]


def int4(num_out: int, num_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight as `_weight_int4pack_mm` takes it: packed codes, scales and zeros; and its values."""
    codes = torch.randint(0, 16, (num_out, num_in), device="cuda", dtype=torch.int32)
    scales = torch.rand(num_in // 128, num_out, 1, device="cuda", dtype=BF16)
    packed = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8), 8)
    values = (codes - 8).double() * scales.double().squeeze(-1).T.repeat_interleave(128, 1)
    return packed, torch.cat([scales, torch.zeros_like(scales)], 2), values


def int4_call(x: Tensor, weight: tuple[Tensor, Tensor, Tensor]) -> Call:
    packed, scales, values = weight
    call = lambda: torch._weight_int4pack_mm(x, packed, 128, scales)  # noqa: E731
    exact = x.double() @ values.T
    assert (call().double() - exact).norm() / exact.norm() < 2**-6
    return call


def fp8(num_out: int, num_in: int) -> Tensor:
    return random_weight(num_out, num_in).to(torch.float8_e4m3fn)


def fp8_call(x: Tensor, weight: Tensor) -> Call:
    """Return a product with inputs that are quantized beforehand: what comes before ours is not in it."""
    one, eights = torch.ones((), device="cuda"), x.to(torch.float8_e4m3fn)
    rows = torch.cat([eights, eights.new_zeros(-x.shape[0] % 16, x.shape[1])])
    call = lambda: torch._scaled_mm(rows, weight.T, one, one, out_dtype=BF16)  # noqa: E731
    exact = eights.double() @ weight.double().T
    assert (call()[: x.shape[0]].double() - exact).norm() / exact.norm() < 2**-8
    return call


def random_weight(num_out: int, num_in: int) -> Tensor:
    return torch.randn(num_out, num_in, device="cuda", dtype=BF16) / math.sqrt(num_in)


def pack(weight: Tensor, spec: QuantSpec) -> Quantized:
    known = {"amax": compute_amax(weight, spec), "global_amax": weight.float().abs().max()}
    return ops.quantize(weight, [known[name] for name in spec.state], spec)


def timed(call_of: Callable[[Any], Call], make: Callable[[], Any], size: int) -> float:
    """Return microseconds of a call, with weights of `size` bytes that are not in the cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    calls = [call_of(make()) for _ in range(math.ceil(4 * cache / size) + 1)]
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return statistics.median(elapsed(graph) for _ in range(20)) * 1000 / len(calls)


def elapsed(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1))
        return
    table = Table(*rows[0], title=torch.cuda.get_device_name())
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
