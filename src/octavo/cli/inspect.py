"""`octavo inspect`: what a quantized checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.packed import PackedChain, PackedTensor


def inspect(
    directory: Annotated[Path, typer.Argument(help="A quantized checkpoint.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Read and check every tensor.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the formats of a quantized checkpoint; --verify reads every tensor and checks its bytes and shape."""
    checkpoint = exporter_of(directory).open(directory)
    described = checkpoint.describe()
    if verify:
        packed = [isinstance(value, (PackedChain, PackedTensor)) for _, value in checkpoint.tensors()]
        described["verified"] = {"quantized": sum(packed), "other": len(packed) - sum(packed)}
        described["activations"] = len(checkpoint.activations())
    if as_json:
        output.print_json(described)
    else:
        output.print_table(str(directory), ("field", "value"), list(described.items()))
