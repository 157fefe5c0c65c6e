"""What exporting costs beside writing the unquantized weights: bytes of weights a second, one thread of torch.

Run: python benchmarks/export_speed.py [--json] [--repeats N] [--cases GLOBS] [--layers N] [--folder DIR]
     [--peer PYTHON]

A random Llama (1.5 GB of bf16 with 16 layers) is quantized with static scales and exported; before each export the
plain weights of the same model are written by safetensors' `save_file`, on the same disk. Both are counted in bytes of
the bf16 weights that they read, as medians. `save_file` leaves its bytes to the system to write out; an export returns
when all that it wrote is on the disk, read back and hashed. Beside the ratio to `save_file` as it is stand therefore
that to `save_file` and a flush, that to one whose file is flushed, read back and hashed, too ("checked"), and those of
CPU seconds, which other work on the machine disturbs least. Correctness
is checked first: codes and scale of a layer must equal a direct computation's. Each case has a process of its own.

--peer names the Python of an environment with nvidia-modelopt[hf]==0.47.0, whose rows come from the same run; cases
that it cannot run on a CPU are named. --folder is on the disk to measure; everything written there is removed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import export_workload as workload
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import octavo

PEER = str(Path(__file__).with_name("peer_modelopt_export.py"))
LAYER = "model.layers.0.mlp.down_proj"


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    if options.case is not None:
        measure(options.case, options.folder, options.repeats)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as directory:
        folder = Path(directory, "model")
        check(folder)
        workload.write_model(folder, options.layers)
        rows = measure_all(folder, options)
    print_rows(rows, options.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="*", help="globs, separated by commas")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument(
        "--folder", type=Path, help="where to write; by default the system's temporary folder"
    )
    parser.add_argument("--peer", help="Python with ModelOpt")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # of a process of its own
    return parser.parse_args()


def check(folder: Path) -> None:
    """Export FP8 of one layer and compare its codes and scale with float64 arithmetic; exit when one differs."""
    from safetensors.torch import load_file

    workload.write_model(folder, num_layers=1)
    model = workload.read_model(folder)
    weight = model.get_parameter(f"{LAYER}.weight").detach().clone()
    written = folder.with_name("checked")
    export(quantize("FP8", model), written)
    tensors = load_file(written / "model.safetensors")
    scale = weight.abs().max().float() / 448
    quotients = (weight.double() / scale.double()).float().to(weight.dtype)  # ModelOpt divides in bf16
    if not torch.equal(tensors[f"{LAYER}.weight_scale"], scale):
        sys.exit(f"{LAYER}: the scale is {tensors[f'{LAYER}.weight_scale']}, expected {scale}")
    if not torch.equal(tensors[f"{LAYER}.weight"].float(), quotients.to(torch.float8_e4m3fn).float()):
        sys.exit(f"{LAYER}: codes differ from those computed directly")


def quantize(case: str, model: nn.Module) -> nn.Module:
    return octavo.quantize(
        model, octavo.preset(workload.CASES[case]), forward_loop=workload.forward_loop, quiet=True
    )


def export(model: nn.Module, folder: Path) -> None:
    octavo.export_hf_checkpoint(model, export_dir=folder, quiet=True)


def measure(case: str, folder: Path, repeats: int) -> None:
    """Print the row of a case."""

    def quantize_case(model: nn.Module) -> None:
        quantize(case, model)

    workload.measure(f"octavo {octavo.__version__}", case, folder, repeats, quantize_case, export)


def measure_all(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    globs = options.cases.split(",")
    cases = [case for case in workload.CASES if any(fnmatch.fnmatch(case, glob) for glob in globs)]
    scripts = [(sys.executable, __file__)] + ([(options.peer, PEER)] if options.peer is not None else [])
    return [row for case in cases for script in scripts for row in run(*script, case, folder, options)]


def run(
    python: str, script: str, case: str, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the row of a case, measured by a process of its own; none, with a word, where that fails."""
    command = [python, script, "--case", case, "--repeats", str(options.repeats), "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(f"{case}, {python} failed:\n{result.stderr[-1000:]}", file=sys.stderr)
        return []
    row = with_bandwidths(json.loads(result.stdout.splitlines()[-1]))
    print(json.dumps(row), file=sys.stderr, flush=True)
    return [row]


def with_bandwidths(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with gigabytes a second, and parts of what `save_file` reaches."""
    return row | {
        "gigabytes_a_second": row["bytes"] / 1e9 / row["export_flushed"],
        "of_save_file_cpu": row["save_cpu"] / row["export_cpu"],
        "of_save_file": row["save_wall"] / row["export_flushed"],
        "of_flushed_save_file": row["save_flushed"] / row["export_flushed"],
        "of_checked_save_file_cpu": row["checked_cpu"] / row["export_cpu"],
        "of_checked_save_file": row["checked_flushed"] / row["export_flushed"],
    }


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title="export of a bf16 Llama, bytes of weights read")
    columns = ("tool", "case", "CPU s", "s", "GB/s", "of save_file, CPU", "wall", "flushed")
    for column in (*columns, "of checked save_file, CPU", "wall", "MB"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["tool"],
            row["case"],
            f"{row['export_cpu']:.2f}",
            f"{row['export_flushed']:.2f}",
            f"{row['gigabytes_a_second']:.2f}",
            f"{row['of_save_file_cpu']:.2f}",
            f"{row['of_save_file']:.2f}",
            f"{row['of_flushed_save_file']:.2f}",
            f"{row['of_checked_save_file_cpu']:.2f}",
            f"{row['of_checked_save_file']:.2f}",
            f"{row['megabytes']:.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
