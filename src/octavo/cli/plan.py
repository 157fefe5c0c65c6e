"""`octavo plan`: what quantizing would do, without loading weights."""

from __future__ import annotations

import typer

from octavo.cli import options, output
from octavo.cli.skeleton import plan_checkpoint


def plan(
    model: options.Model,
    preset: options.Preset = None,
    kv: options.Kv = None,
    recipe: options.Recipe = None,
    block_size: options.BlockSize = None,
    target: options.Target = None,
    tp: options.TensorParallel = 1,
    stats_budget: options.StatsBudget = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Show each weight's format, what is left out and why, sizes, and what stands in the way.

    Exits with 3 when `octavo quantize` would refuse.
    """
    config, load_as = options.config_from(preset, kv, recipe, block_size), options.dtype_from(dtype)
    made = plan_checkpoint(model, config, load_as, trust_remote_code, target, tp, stats_budget)
    if as_json:
        output.print_json(made.to_json())
    else:
        rows = [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)),
                " then ".join(map(str, tensor.weight)) or f"{tensor.dtype} ({tensor.reason})",
                " then ".join(map(str, tensor.inputs)) or "-",
            )
            for tensor in made.tensors
            if len(tensor.shape) > 1
        ]
        output.print_table(f"plan for {model}", ("weight", "shape", "format", "input"), rows)
        output.print_text(made.summary())
    if made.errors:
        raise typer.Exit(3)
