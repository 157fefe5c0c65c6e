"""What post-training quantization costs, in plain forward passes over the calibration data (CPU time, one thread).

Run: python benchmarks/ptq_cost.py [--json] [--repeats N] [--cases GLOBS] [--peer PYTHON]

--peer names the Python of an environment with nvidia-modelopt[hf]==0.47.0, transformers==5.14.* and torch==2.13.0;
its rows come from the same run, on the same model and data. Every repeat measures a plain pass beside it, and the
median ratio is reported, with the least and the most; a quantized forward pass is measured the same way. Each case has
a process of its own, whose megabytes are the memory that quantizing took. Its row is printed to stderr as JSON as soon
as it is there, so that an interrupted run is not lost. Correctness is checked first: every scale must equal a direct
computation's. The cases are in workload.py; one whose algorithm this version does not have is left out, and named.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import workload
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import octavo
from octavo.core.calibration.algorithms import algorithms_of

PEER = str(Path(__file__).with_name("peer_modelopt.py"))


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--cases", default="*", help="globs, separated by commas")
    arguments.add_argument("--peer", help="Python with ModelOpt")
    arguments.add_argument("--case", help=argparse.SUPPRESS)  # of a process of its own
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.case is not None:
        measure(options.case, options.repeats)
        return
    check(workload.model())
    globs = options.cases.split(",")
    cases = [case for case in workload.CASES if any(fnmatch.fnmatch(case, glob) for glob in globs)]
    rows = [
        row for case in cases if is_available(case) for row in run(sys.executable, __file__, case, options)
    ]
    if options.peer is not None:
        peers = [case for case in cases if workload.CASES[case].peer]
        rows += [row for case in peers for row in run(options.peer, PEER, case, options)]
    print_rows(rows, options.json)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title="post-training quantization, 29 M fp32 Llama, 16 x 512 tokens, one thread")
    for column in ("tool", "case", "plain passes", "CPU s", "MB", "quantized forward"):
        table.add_column(column)
    for row in rows:
        forward = row.get("forward_passes")
        table.add_row(
            row["tool"],
            row["case"],
            "{:.3f} ({:.3f} to {:.3f})".format(row["passes"], *row["passes_range"]),
            f"{row['cpu_seconds']:.2f}",
            f"{row['megabytes']:.0f}",
            "-" if forward is None else f"{forward:.2f}",
        )
    Console(width=100).print(table)


def config_of(case: str) -> dict[str, Any]:
    chosen = workload.CASES[case]
    return chosen.config(octavo.preset(chosen.preset))


def is_available(case: str) -> bool:
    try:
        algorithms_of(config_of(case)["algorithm"])
    except (octavo.ConfigError, octavo.UnsupportedError) as error:
        print(f"{case}: {error}", file=sys.stderr)
        return False
    return True


def check(base: nn.Module) -> None:
    """Compare every scale of an FP8 run with maxima collected by plain hooks; exit when one differs."""
    expected: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            amax = args[0].abs().max()
            expected[name] = torch.maximum(expected.get(name, amax), amax)

        return record

    layers = {n: m for n, m in base.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    workload.forward_loop(base, workload.data())
    for handle in handles:
        handle.remove()
    model = octavo.quantize(copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, workload.data(), quiet=True)
    for name, layer in layers.items():
        quantized: Any = model.get_submodule(name)
        found = (quantized.input_quantizer.amax, quantized.weight_quantizer.amax)
        if not all(map(torch.equal, found, (expected[name], layer.weight.abs().max()))):
            sys.exit(f"{name}: maxima {found} differ from {expected[name]} and {layer.weight.abs().max()}")


def measure(case: str, repeats: int) -> None:
    """Print the row of a case."""
    config = config_of(case)

    def quantize(model: nn.Module, batches: list[Tensor]) -> None:
        octavo.quantize(model, config, batches, quiet=True)

    workload.measure(f"octavo {octavo.__version__}", case, quantize, repeats, forward=True)


def run(python: str, script: str, case: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the row of a case, measured by a process of its own; none, with a word, where that fails."""
    command = [python, script, "--case", case, "--repeats", str(options.repeats)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(f"{case}, {python} failed:\n{result.stderr[-1000:]}", file=sys.stderr)
        return []
    row = result.stdout.splitlines()[-1]
    print(row, file=sys.stderr, flush=True)
    return [json.loads(row)]


if __name__ == "__main__":
    main()
