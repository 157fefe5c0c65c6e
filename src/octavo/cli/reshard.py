"""`octavo reshard`: a TensorRT-LLM checkpoint for other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import octavo
from octavo.cli import options, output


def reshard(
    directory: Annotated[
        Path, typer.Argument(help="A TensorRT-LLM checkpoint of any layout.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    tp: options.RanksOfLayers = 1,
    pp: options.Stages = 1,
    ep: options.ExpertGroups = 1,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Divide a TensorRT-LLM checkpoint over other ranks, without the model; no number changes."""
    report = octavo.reshard_tensorrt_llm(directory, out, tp, pp, ep, overwrite)
    if as_json:
        output.print_json(
            {
                "directory": str(report.directory),
                "num_tensors": report.num_tensors,
                "num_bytes": report.num_bytes,
            }
        )
    else:
        output.print_text(
            f"{report.directory}: {tp * pp} ranks, {report.num_tensors} tensors, {report.num_bytes / 1e6:,.2f} MB"
        )
