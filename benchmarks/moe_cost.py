"""What quantizing a mixture of experts costs, in plain forward passes over the calibration data (CPU time, one thread).

Run: python benchmarks/moe_cost.py [--json] [--repeats N]

A random fp32 Qwen3-MoE of 4 layers, hidden 128, 128 experts of width 64, top 8; 4 batches of 4 x 256 tokens. A
calibration runs expert by expert, as transformers' eager implementation does, and the pass with transformers' grouped
kernel is shown beside that. Correctness is checked first: every count of tokens and every scale must equal a direct
computation's. Quantizer modules are counted, too: all of them, and those that are on.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from functools import partial
from typing import Any

import torch
import workload
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import silu

import octavo
from octavo.core.calibration.experts import tokens_per_expert

VOCABULARY, EXPERTS = 1024, 128
IMPLEMENTATIONS = ("eager", "grouped_mm")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    base, batches = moe(), data()
    check(base, batches)
    rows = measure(base, batches, options.repeats)
    quantizers = count_quantizers(base, batches[:1])
    if options.json:
        print(json.dumps({"cost": rows, "quantizers": quantizers}, indent=2))
        return
    table = Table(title="FP8 of a 128-expert fp32 Qwen3-MoE, 16 x 256 tokens, one thread")
    for column in ("plain passes by", "passes", "CPU s of quantize", "CPU s of a pass"):
        table.add_column(column)
    for row in rows:
        numbers = (f"{row[name]:.2f}" for name in ("passes", "cpu_seconds", "plain_cpu_seconds"))
        table.add_row(row["experts"], *numbers)
    Console().print(table)
    for part, (total, enabled) in quantizers.items():
        print(f"{part}: {total} quantizer modules, of which {enabled} are on")


def moe() -> Any:
    """Return the model, in eval mode and with transformers' eager experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=8,
        use_cache=False,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    return model


def data() -> list[Tensor]:
    """Return 4 batches of 4 samples of 256 random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (4, 256), generator=generator) for _ in range(4)]


@torch.no_grad()
def forward_loop(model: nn.Module, batches: list[Tensor]) -> None:
    for ids in batches:
        model(ids)


def check(base: nn.Module, batches: list[Tensor]) -> None:
    """Compare counts and scales of a run with those seen by plain hooks; exit when one differs."""
    layers: dict[str, Any] = {n: m for n, m in base.named_modules() if n.endswith("mlp.experts")}
    inputs: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, seen=inputs[name]: seen.append(args))
        for name, layer in layers.items()
    ]
    forward_loop(base, batches)
    for handle in handles:
        handle.remove()
    model = octavo.quantize(copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, batches, quiet=True)
    counts = tokens_per_expert(model)
    for name, layer in layers.items():
        found: Any = model.get_submodule(name)
        pairs = {
            "tokens per expert": (counts[name], expected_counts(inputs[name])),
            "gate_up_proj weights": (
                found.gate_up_proj_weight_quantizer.amax.flatten(),
                layer.gate_up_proj.abs().amax((1, 2)),
            ),
            "down_proj weights": (
                found.down_proj_weight_quantizer.amax.flatten(),
                layer.down_proj.abs().amax((1, 2)),
            ),
            "gate_up_proj inputs": (
                found.gate_up_proj_input_quantizer.amax,
                torch.stack([x.abs().max() for x, *_ in inputs[name]]).max(),
            ),
            "down_proj inputs": (found.down_proj_input_quantizer.amax, largest_hidden(layer, inputs[name])),
        }
        for what, (is_value, should) in pairs.items():
            if not torch.equal(is_value, should):
                sys.exit(f"{name}, {what}: found {is_value}, expected {should}")


def expected_counts(inputs: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.stack([torch.bincount(chosen.flatten(), minlength=EXPERTS) for _, chosen, _ in inputs]).sum(
        0
    )


@torch.no_grad()
def largest_hidden(layer: Any, inputs: list[tuple[Tensor, ...]]) -> Tensor:
    """Return the largest magnitude that reaches the down projections."""
    largest = torch.zeros(())
    for x, chosen, _ in inputs:
        for expert in chosen.unique():
            tokens = (chosen == expert).T.nonzero()[:, 1]  # in transformers' order
            gate, up = nn.functional.linear(x[tokens], layer.gate_up_proj[expert]).chunk(2, -1)
            largest = torch.maximum(largest, (silu(gate) * up).abs().max())
    return largest


def measure(base: Any, batches: list[Tensor], repeats: int) -> list[dict[str, Any]]:
    """Quantize fresh copies, run both kinds of plain pass beside each, and return the medians."""
    octavo.quantize(
        copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, batches[:1], quiet=True
    )  # imports and caches
    spent: list[float] = []
    plain: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(repeats):
        for name in IMPLEMENTATIONS:
            base.set_experts_implementation(name)
            plain[name].append(workload.cpu_seconds(partial(forward_loop, base, batches)))
        work = partial(octavo.quantize, copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, batches, quiet=True)
        spent.append(workload.cpu_seconds(work))
    return [
        {
            "tool": f"octavo {octavo.__version__}",
            "experts": name,
            "passes": statistics.median(
                mine / theirs for mine, theirs in zip(spent, plain[name], strict=True)
            ),
            "cpu_seconds": statistics.median(spent),
            "plain_cpu_seconds": statistics.median(plain[name]),
        }
        for name in IMPLEMENTATIONS
    ]


def count_quantizers(base: nn.Module, batches: list[Tensor]) -> dict[str, tuple[int, int]]:
    """Return (all, those that are on) of the quantizer modules in one decoder block and in its experts' module."""
    model = octavo.quantize(copy.deepcopy(base), octavo.FP8_DEFAULT_CFG, batches, quiet=True)
    counts = {}
    for part, name in (("decoder block", "model.layers.0"), ("its experts", "model.layers.0.mlp.experts")):
        modules = model.get_submodule(name).modules()
        found = [module for module in modules if isinstance(module, octavo.TensorQuantizer)]
        counts[part] = len(found), sum(quantizer.enabled for quantizer in found)
    return counts


if __name__ == "__main__":
    main()
