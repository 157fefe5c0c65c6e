"""What post-training quantization costs, in plain forward passes over the calibration data (CPU time, one thread).

Run: python benchmarks/ptq_cost.py [--json] [--repeats N] [--peer PYTHON]

--peer names the Python of an environment with nvidia-modelopt[hf]==0.47.0, transformers==5.14.* and torch==2.13.0;
its rows come from the same run, on the same model and data. Every repeat measures a plain pass beside it, and the
median ratio is reported. Correctness is checked first: every scale must equal a direct computation's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
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

PRESETS = ("FP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG")
PEER_PRESETS = PRESETS
SEARCHES = (
    "INT8_SMOOTHQUANT_CFG",
    "INT4_AWQ_CFG",
    "INT4_AWQ_CFG with awq_full",
    "NVFP4_SVDQUANT_DEFAULT_CFG",
)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--peer", help="Python with ModelOpt")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    base = workload.model()
    check(base)
    rows = [measure(base, preset, options.repeats) for preset in (*PRESETS, *SEARCHES)]
    if options.peer is not None:
        rows += run_peer(options.peer, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title="post-training quantization, 29 M fp32 Llama, 16 x 512 tokens, one thread")
    for column in ("tool", "preset", "plain passes", "CPU s"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["tool"], row["preset"], f"{row['passes']:.3f}", f"{row['cpu_seconds']:.2f}")
    Console().print(table)


def config_named(name: str) -> dict[str, Any]:
    """Return a preset, with another algorithm after `with`; INT4 in groups of 32, which divide the model's widths."""
    preset, _, algorithm = name.partition(" with ")
    config = octavo.merge_configs(preset)
    for rule in config["quant_cfg"]:
        attributes = rule.get("cfg")
        if isinstance(attributes, dict) and attributes["num_bits"] == 4:
            attributes["block_sizes"][-1] = 32
    return {**config, "algorithm": algorithm} if algorithm else config


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
    workload.forward_loop(base)
    for handle in handles:
        handle.remove()
    model = octavo.quantize(copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, workload.data(), quiet=True)
    for name, layer in layers.items():
        quantized: Any = model.get_submodule(name)
        found = (quantized.input_quantizer.amax, quantized.weight_quantizer.amax)
        if not all(map(torch.equal, found, (expected[name], layer.weight.abs().max()))):
            sys.exit(f"{name}: maxima {found} differ from {expected[name]} and {layer.weight.abs().max()}")


def measure(base: nn.Module, preset: str, repeats: int) -> dict[str, Any]:
    """Quantize fresh copies and return the median cost."""
    config, batches = config_named(preset), workload.data()
    octavo.quantize(copy.deepcopy(base), config, batches[:1], quiet=True)  # imports and caches
    ratios, seconds = [], []
    for _ in range(repeats):
        model = copy.deepcopy(base)
        plain = workload.cpu_seconds(lambda: workload.forward_loop(base))
        spent = workload.cpu_seconds(lambda: octavo.quantize(model, config, batches, quiet=True))  # noqa: B023
        ratios.append(spent / plain)
        seconds.append(spent)
    return {
        "tool": f"octavo {octavo.__version__}",
        "preset": preset,
        "passes": statistics.median(ratios),
        "cpu_seconds": statistics.median(seconds),
    }


def run_peer(python: str, repeats: int) -> list[dict[str, Any]]:
    """Return ModelOpt's rows."""
    script = Path(__file__).with_name("peer_modelopt.py")
    command = [python, str(script), ",".join(PEER_PRESETS), str(repeats)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"the peer failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
