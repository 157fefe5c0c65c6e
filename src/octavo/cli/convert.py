"""`octavo convert`: a quantized checkpoint in another dialect, without its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output


def convert(
    source: Annotated[Path, typer.Argument(help="A quantized checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write the new one to.", show_default=False)],
    to: Annotated[
        str | None, typer.Option(help="Dialect to write: unified_hf, compressed_tensors, tensorrt_llm.")
    ] = None,
    target: options.Target = None,
    tp: options.RanksOfLayers = 1,
    pp: options.Stages = 1,
    ep: options.ExpertGroups = 1,
    config: Annotated[
        Path | None,
        typer.Option(help="Folder of the original model: config and tokenizer for a TensorRT-LLM SOURCE."),
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write the nearest numbers where exact ones have no place.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Write SOURCE in another dialect to OUT, with the same numbers or, with --lossy, the nearest; say what changes."""
    import octavo

    report = octavo.convert_checkpoint(
        source,
        out,
        dialect=to,
        target=target,
        lossy=lossy,
        overwrite=overwrite,
        quiet=quiet,
        tp=tp,
        pp=pp,
        ep=ep,
        config=config,
    )
    if as_json:
        output.print_json({**asdict(report), "directory": str(report.directory)})
    elif not quiet:
        output.print_text(
            f"{report.directory}: {report.num_tensors} tensors, {report.num_bytes / 1e6:,.2f} MB, from "
            f"{report.source_dialect} to {report.dialect}; {report.share_of_codes:.2%} of the codes changed"
        )
