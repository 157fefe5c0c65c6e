"""A step of quantization-aware training beside one of the same model unquantized (29 M parameters, CPU time).

Run: python benchmarks/qat_step.py [--json] [--repeats N] [--samples N] [--threads N] [--cases GLOBS] [--peer PYTHON]

A step is forward, loss, backward and AdamW, on --samples x 512 tokens. Both models step in turn; reported is the median
of how fast the quantized one is, 1 being as fast as the other. Then a step of distillation (QAD), whose teacher is the
original that the quantized model has in itself, beside one of QAT: the median of how many times as long it takes.
Before all that, the gradients by kernels are compared with those by the reference: equal, except for the order of sums.
--peer names the Python of an environment with torchao==0.18.0 and transformers, whose rows come from the same run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import training_step
import workload
from rich.console import Console
from rich.table import Table
from torch import nn

import octavo
from octavo.core.ops.kernels import using

PEER = str(Path(__file__).with_name("peer_torchao_qat.py"))
# case -> (config, how fast a step is to be)
CASES: dict[str, tuple[Any, float]] = {
    "FP8 W8A8": ("FP8_DEFAULT_CFG", 0.80),
    "INT4 g32 weight": (octavo.with_block_size("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 32), 0.92),
    "NVFP4 W4A4": ("NVFP4_DEFAULT_CFG", 0.70),
    "MXFP4 W4A4": ("MXFP4_DEFAULT_CFG", 0.70),
}
DISTILLATION_AIM = 1.45  # steps of QAT that one of QAD may take


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--samples", type=int, default=4)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--cases", default="*", help="globs, separated by commas")
    arguments.add_argument("--peer", help="Python with torchao")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for case in CASES if any(fnmatch.fnmatch(case, glob) for glob in options.cases.split(","))]
    rows = []
    for case in cases:
        rows.append(measure(case, options.repeats, options.samples))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        rows.append(measure_distillation(case, options.repeats, options.samples))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if options.peer is not None:
            rows.append(peer(case, options))
    print(json.dumps(rows, indent=2)) if options.json else print_table(rows)


def quantized(case: str) -> nn.Module:
    return octavo.quantize(workload.model(), CASES[case][0], workload.data()[:1], quiet=True)


def measure(case: str, repeats: int, samples: int) -> dict[str, Any]:
    check(case)
    speeds = training_step.speeds(quantized(case), repeats, samples)
    return {"tool": f"octavo {octavo.__version__}", "case": case, "aim": CASES[case][1], **speeds}


def measure_distillation(case: str, repeats: int, samples: int) -> dict[str, Any]:
    """Return how many steps of QAT a step of QAD takes: the same, by the divergence from the model's original."""
    ids, student = torch.cat(workload.data()[:samples]), quantized(case)
    distillation = octavo.distill(student)
    qat = training_step.step_of(quantized(case), ids)
    qad = training_step.step_of(student, ids, lambda model, ids: distillation.loss(model(ids)))
    times = training_step.in_turn(qat, qad, repeats)
    ratios = [own / plain for plain, own in times]
    plain_seconds, seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "tool": f"octavo {octavo.__version__}",
        "case": f"{case}, distilled",
        "aim": DISTILLATION_AIM,
        "steps_of_qat": statistics.median(ratios),
        "steps_of_qat_range": [min(ratios), max(ratios)],
        "cpu_seconds": seconds,
        "qat_cpu_seconds": plain_seconds,
    }


def check(case: str) -> None:
    """Compare the gradients of the first layers by kernels and by the reference; exit where they differ."""
    model, ids = quantized(case), workload.data()[0][:, :64]
    weight = model.get_parameter("model.layers.7.mlp.down_proj.weight")
    found = []
    for kernels in ((), ("reference",)):
        model.zero_grad()
        if kernels:
            with using(*kernels):
                training_step.loss(model, ids).backward()
        else:
            training_step.loss(model, ids).backward()
        assert weight.grad is not None
        found.append(weight.grad.clone())
    if not torch.allclose(*found, rtol=1e-4, atol=1e-6 * found[1].abs().max().item()):
        sys.exit(f"{case}: gradients differ by {(found[0] - found[1]).abs().max()}")


def peer(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return torchao's row, measured by a process of its own, or what it says."""
    command = [options.peer, PEER, case, str(options.repeats), str(options.samples), str(options.threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return {"tool": "torchao", "case": case, "refuses": result.stderr.strip().splitlines()[-1]}
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="QAT step, 29 M fp32 Llama, beside an unquantized one; distilled: beside one of QAT")
    for column in ("tool", "case", "speed, or steps of QAT", "aim", "CPU s", "CPU s beside"):
        table.add_column(column)
    for row in rows:
        if "refuses" in row:
            table.add_row(row["tool"], row["case"], f"refuses: {row['refuses'][:50]}")
            continue
        key, beside = ("speed", "plain") if "speed" in row else ("steps_of_qat", "qat")
        speed = "{:.2f} ({:.2f} to {:.2f})".format(row[key], *row[f"{key}_range"])
        seconds = f"{row['cpu_seconds']:.2f}", f"{row[f'{beside}_cpu_seconds']:.2f}"
        table.add_row(row["tool"], row["case"], speed, str(row.get("aim", "")), *seconds)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
