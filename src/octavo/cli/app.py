"""The application: its commands, and the exit code of each kind of failure.

Exit codes: 0 done; 1 unexpected failure (a traceback is shown), or `verify` found errors; 2 wrong command line;
3 refused before any work (config, plan, unsupported, plugin); 4 calibration failed; 5 a checkpoint could not be read
or written.
"""

from __future__ import annotations

import sys

import typer

from octavo.cli import (
    calibrate,
    convert,
    evaluate,
    inspect,
    listings,
    plan,
    quantize,
    report,
    reshard,
    verify,
)
from octavo.core.errors import CalibrationError, CheckpointError, ExportError, OctavoError

REFUSED, CALIBRATION_FAILED, CHECKPOINT_FAILED = 3, 4, 5

app = typer.Typer(
    name="octavo",
    help=f"Quantize models and write checkpoints that serving engines load.\n\n{(__doc__ or '').split(chr(10), 2)[2]}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quantize")(quantize.quantize)
app.command("calibrate")(calibrate.calibrate)
app.command("convert")(convert.convert)
app.command("plan")(plan.plan)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("reshard")(reshard.reshard)
app.command("presets")(listings.presets)
app.command("plugins")(listings.plugins)
app.command("kernels")(listings.kernels)


def main() -> None:
    """Run the command line; an `OctavoError` becomes one message and an exit code."""
    try:
        app()
    except OctavoError as error:
        sys.stderr.write(f"octavo: error: {error}\n")
        sys.exit(exit_code(error))


def exit_code(error: OctavoError) -> int:
    """Return the exit code that stands for this kind of error."""
    if isinstance(error, CalibrationError):
        return CALIBRATION_FAILED
    return CHECKPOINT_FAILED if isinstance(error, (CheckpointError, ExportError)) else REFUSED
