"""AWQ of one decoder block with Llama-3-8B's shapes on 4,096 tokens: Octavo beside ModelOpt, CPU time, one thread.

Run: python benchmarks/llama_block.py [--peer PYTHON] [--tokens N] [--shrink N] [--dtype bfloat16] [--json]

A model of one block (218 M parameters; 256 words, so that the head costs nothing) with random weights, INT4 in blocks
of 128, awq_lite with alpha_step 0.1 for both. --peer names the Python of an environment with nvidia-modelopt[hf]; both
run in processes of their own, one after the other, on the same weights and tokens, and a plain pass is measured by
each. Correctness: the output error of the block, relative to the plain one's output, is printed for both, and the
script fails when Octavo's is more than 5 % above the peer's. --shrink N divides widths and number of tokens: the
products cost N³ times less, in the same proportions, for a quick look.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from typing import Any

import torch
import workload
from torch import Tensor, nn

SEQUENCE = 512


def main() -> None:
    options = parse_arguments()
    if options.tool is not None:
        print(json.dumps(measure(options)))
        return
    rows = [run(sys.executable, "octavo", options)]
    if options.peer is not None:
        rows.append(run(options.peer, "modelopt", options))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)
    errors = [row["error"] for row in rows]
    if errors[0] > 1.05 * errors[-1]:
        sys.exit(f"Octavo's output error {errors[0]:.4g} is above the peer's {errors[-1]:.4g}")


def print_rows(rows: list[dict[str, Any]]) -> None:
    print("| tool | CPU s | plain passes | MB | output error | times cheaper |\n|---|---|---|---|---|---|")
    for row in rows:
        ratio = rows[-1]["cpu_seconds"] / row["cpu_seconds"]
        print(
            f"| {row['tool']} | {row['cpu_seconds']:.1f} | {row['passes']:.2f} | {row['megabytes']:.0f} | "
            f"{row['error']:.5f} | {ratio:.2f} |"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="Python with ModelOpt")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--shrink", type=int, choices=(1, 2, 4, 8), default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tool", help=argparse.SUPPRESS)  # of a process of its own
    return parser.parse_args()


def run(python: str, tool: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [python, __file__, "--tool", tool, "--tokens", str(options.tokens), "--dtype", options.dtype]
    command += ["--shrink", str(options.shrink)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{tool} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def block_model(dtype: str, shrink: int) -> nn.Module:
    """Return a Llama of one block: hidden 4096, 32 heads (8 for keys and values), feed-forward 14336."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=4096 // shrink, intermediate_size=14336 // shrink, num_hidden_layers=1,
        num_attention_heads=32 // shrink, num_key_value_heads=8 // shrink,
        max_position_embeddings=SEQUENCE, use_cache=False, dtype=dtype,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    with torch.no_grad():  # a few loud channels, as trained models have, for AWQ to find
        for name, weight in model.named_parameters():
            if name.endswith("layernorm.weight"):
                weight[torch.randperm(len(weight))[:40]] = 8.0
    return model


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the cost of awq_lite by one tool."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (options.tokens // SEQUENCE, SEQUENCE // options.shrink), generator=generator)
    batches = list(ids.split(1))
    base = block_model(options.dtype, options.shrink)
    model = copy.deepcopy(base)

    def loop(target: nn.Module) -> None:
        for batch in batches:
            target(batch)

    plain = workload.cpu_seconds(lambda: loop(base))
    before = workload.peak_megabytes()
    name, quantize = quantizer_of(options.tool)
    spent = workload.cpu_seconds(lambda: quantize(model, loop))
    megabytes = workload.peak_megabytes() - before
    return {
        "tool": name,
        "cpu_seconds": spent,
        "passes": spent / plain,
        "megabytes": megabytes,
        "error": relative_error(base, model, batches[0]),
    }


def quantizer_of(tool: str) -> tuple[str, Any]:
    """Return a tool's name with its version, and what quantizes a model with a loop."""
    if tool == "octavo":
        import octavo

        config = octavo.preset("INT4_AWQ_CFG")
        return f"octavo {octavo.__version__}", lambda model, loop: octavo.quantize(
            model, config, loop, quiet=True
        )
    import modelopt
    import modelopt.torch.quantization as mtq

    return f"modelopt {modelopt.__version__}", lambda model, loop: mtq.quantize(model, mtq.INT4_AWQ_CFG, loop)


def relative_error(base: nn.Module, model: nn.Module, ids: Tensor) -> float:
    """Return |difference|² / |plain|² of what the block adds to the residual stream."""
    plain, found = (m.model(ids).last_hidden_state.float() for m in (base, model))  # type: ignore[union-attr, operator]
    return float((found - plain).square().sum() / plain.square().sum())


if __name__ == "__main__":
    main()
