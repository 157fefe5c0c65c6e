"""What a token costs at batch 1 with packed weights: a 316 M Llama, greedy, with a KV cache (wall time, memory).

Run: python benchmarks/decode.py [--json] [--repeats N] [--cases GLOBS] [--threads N] [--dtype DTYPE] [--peer PYTHON]

--dtype is that of the packed models, bfloat16 or float32. --peer names the Python of an environment with torchao,
transformers and torch; its rows come from the same run, and what it cannot run on this machine is said. Rounds of 32
tokens go over all models in turn, so that what else the machine does falls on all of them. The median of all tokens is
reported, and the least, which is what a token costs where nothing else runs. Correctness is checked first, on two
layers in fp32: the logits of a packed model must be those of the same model with dense weights, but for the order of
sums.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import decode_workload as workload
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import octavo

PEER = str(Path(__file__).with_name("peer_torchao_decode.py"))
PRESETS = {
    "INT4 g128": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "INT8": "INT8_WEIGHT_ONLY_CFG",
    "FP8 128x128": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "NVFP4": "W4A16_NVFP4_CFG",
}
_TOLERANCE = 1e-4  # of the logits' norm; fp32 sums in another order differ by 1e-6


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--cases", default="*", help="globs, separated by commas")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments.add_argument("--peer", help="Python with torchao")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    globs = options.cases.split(",")
    cases = [case for case in PRESETS if any(fnmatch.fnmatch(case, glob) for glob in globs)]
    for case in cases:
        check(case)
    rows = measure(cases, getattr(torch, options.dtype), options.repeats)
    if options.peer is not None:
        rows += run_peer(options)
    print_rows(rows, options)


def config_of(name: str) -> dict[str, Any]:
    config = octavo.preset(PRESETS[name])
    for entry in config["quant_cfg"]:
        if name.startswith("INT4") and entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"]["block_sizes"][-1] = workload.BLOCK
    return config


def packed(name: str, model: nn.Module) -> nn.Module:
    octavo.quantize(model, config_of(name), quiet=True)
    return octavo.compress(model, dialect="neutral", quiet=True)


@torch.inference_mode()
def check(name: str) -> None:
    """Compare the logits of a small packed model with those of its dense values; exit when they differ."""
    model = packed(name, workload.model(torch.float32, num_layers=2))
    dense = octavo.decompress(copy.deepcopy(model))
    found, expected = (target(workload.prompt()).logits for target in (model, dense))
    if not ((found - expected).norm() <= _TOLERANCE * expected.norm()):
        sys.exit(
            f"{name}: logits of packed weights differ by {(found - expected).norm()} of {expected.norm()}"
        )


def measure(cases: list[str], dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    base = workload.model(torch.float32)
    models = {"bf16": copy.deepcopy(base).to(torch.bfloat16), "fp32": base}
    models |= {name: packed(name, copy.deepcopy(base).to(dtype)) for name in cases}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            times[name] += workload.milliseconds(model)
    bytes_of_bf16 = weight_bytes(models["bf16"])
    return [
        row(f"octavo {octavo.__version__}", name, times[name], weight_bytes(model) / bytes_of_bf16)
        for name, model in models.items()
    ]


def row(tool: str, case: str, times: list[float], memory: float) -> dict[str, Any]:
    return {
        "tool": tool,
        "case": case,
        "milliseconds": statistics.median(times),
        "least": min(times),
        "memory": memory,
    }


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the linear layers of all blocks: weights, or codes and scales."""
    layers = [module for name, module in model.named_modules() if workload.is_measured(name, module)]
    tensors = [tensor for layer in layers for tensor in layer.state_dict().values()]
    return sum(tensor.nbytes for tensor in tensors)


def run_peer(options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [options.peer, PEER, "--repeats", str(options.repeats), "--threads", str(options.threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(f"{options.peer} failed:\n{result.stderr[-1000:]}", file=sys.stderr)
        return []
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def print_rows(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    dense = [row for row in rows if row["case"] in ("bf16", "fp32")]
    median, least = (min(row[key] for row in dense) for key in ("milliseconds", "least"))
    table = Table(
        title=f"decode at batch 1, 316 M Llama, packed in {options.dtype}, {options.threads} threads"
    )
    for column in (
        "tool",
        "case",
        "ms a token",
        "least",
        "speed of the faster dense",
        "weights' memory of bf16",
    ):
        table.add_column(column)
    for row in rows:
        if "refused" in row:
            table.add_row(row["tool"], row["case"], "-", "-", row["refused"], "-")
            continue
        table.add_row(
            row["tool"],
            row["case"],
            f"{row['milliseconds']:.1f}",
            f"{row['least']:.1f}",
            f"{median / row['milliseconds']:.2f} (least {least / row['least']:.2f})",
            f"{row['memory']:.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
