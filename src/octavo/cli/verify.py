"""`octavo verify`: what a serving engine's reader would find wrong in a checkpoint's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options, output


def verify(
    directory: Annotated[Path, typer.Argument(help="A quantized checkpoint.", show_default=False)],
    consumer: Annotated[
        str, typer.Option(help="Reader that it is for: vllm, sglang, trtllm or transformers; none is needed.")
    ],
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Check names, dtypes, shapes, scales and metadata as CONSUMER would read them; exits with 1 on errors."""
    import octavo

    findings = octavo.verify_checkpoint(directory, consumer, trust_remote_code)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        output.print_json(
            {
                "directory": str(directory),
                "consumer": consumer,
                "errors": errors,
                "warnings": len(findings) - errors,
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        for finding in findings:
            output.print_text(str(finding))
        output.print_text(f"{directory} for {consumer}: {errors} errors, {len(findings) - errors} warnings")
    if errors:
        raise typer.Exit(1)
