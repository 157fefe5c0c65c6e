"""`octavo quantize --stream`: block by block, and what signals do to it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from octavo.cli.export import HUGGING_FACE
from octavo.core.errors import ConfigError
from octavo.core.model.export_report import ExportReport
from octavo.core.plugins import plugins
from octavo.core.plugins.hookspecs import DataRequest


def check_streamed(
    stream: bool, resume: bool, dialect: str, stats: Path | None, skip_bad_batches: bool
) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: --resume without --stream, or --stream with what it does not do.
    """
    if resume and not stream:
        raise ConfigError("--resume goes on with a run of --stream; give both")
    unknown = {
        f"--dialect {dialect}": dialect != HUGGING_FACE,
        "--stats": stats is not None,
        "--skip-bad-batches": skip_bad_batches,
    }
    if stream and (given := [option for option, is_given in unknown.items() if is_given]):
        raise ConfigError(
            f"--stream does not know {', '.join(given)} yet; leave it out, or quantize in memory"
        )


def stream_checkpoint(
    model: Path, out: Path, request: DataRequest | None, has_tokenizer: bool, **options: Any
) -> ExportReport:
    """Stream a checkpoint; options are those of `quantize_checkpoint`.

    Raises:
        typer.Exit: a signal ended it; what is done is kept, which a line says.
    """
    import octavo

    tokenizer = batches = None
    if request is not None or has_tokenizer:
        tokenizer = plugins().load_tokenizer(model, options["trust_remote_code"])
    if request is not None:
        batches = plugins().text_batches(tokenizer, request)
    with _ended_by_signals(out):
        return octavo.quantize_checkpoint(model, data=batches, export_dir=out, tokenizer=tokenizer, **options)


class _Ended(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ended_by_signals(out: Path) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a line that says how to go on, and the exit code that shells know them by."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Ended as ended:
        folder = out.resolve().with_name(f"{out.resolve().name}.partial")
        sys.stderr.write(
            f"octavo: ended by {signal.Signals(ended.number).name}. Finished blocks are kept in {folder}; the same "
            "command with --resume goes on from there\n"
        )
        raise typer.Exit(128 + ended.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    raise _Ended(number)
