"""`quantize_checkpoint`: from a checkpoint to a quantized one, with one block in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from octavo.core.calibration.algorithms import algorithms_of
from octavo.core.calibration.cost import measured
from octavo.core.calibration.statistics.sizes import parse_bytes
from octavo.core.config import load_config
from octavo.core.console import say
from octavo.core.errors import CalibrationError, ConfigError, ExportError, listed
from octavo.core.model.atomic_folder import check_place
from octavo.core.model.checkpoint_writer import WriteOptions
from octavo.core.model.export_report import ExportReport
from octavo.core.model.shard_reader import read_json
from octavo.core.model.spelled_files import Spelling
from octavo.core.plan.data_needs import waiting_for_data
from octavo.core.plan.targets import check_stored
from octavo.core.streaming import files
from octavo.core.streaming.fingerprints import check_same, fingerprints
from octavo.core.streaming.finish import EXTRAS, RECORD_FILE, Finishing, finish, write_extras
from octavo.core.streaming.journal import NAME as JOURNAL
from octavo.core.streaming.journal import VERSION, Journal
from octavo.core.streaming.lock import locked
from octavo.core.streaming.output import CHECKPOINT, GrowingOutput
from octavo.core.streaming.part_writer import part_exporter
from octavo.core.streaming.progress import Progress
from octavo.core.streaming.records import joined
from octavo.core.streaming.run import RunOptions, StreamRun, check_local
from octavo.core.streaming.streamed_model import StreamedModel, open_model
from octavo.core.streaming.streamed_source import StreamedSource

DEFAULT_EXPORTER = "unified_hf"


def quantize_checkpoint(
    source: str | Path,
    config: str | Mapping[str, Any],
    data: Sequence[Any] | None = None,
    export_dir: str | Path | None = None,
    *,
    target: str | None = None,
    tp: int = 1,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    activation_budget: int | str = "4GB",
    stats_budget: int | str | None = None,
    quiet: bool = False,
    log_json: str | Path | None = None,
) -> ExportReport:
    """Quantize a checkpoint block by block, byte for byte as `quantize` and `export_hf_checkpoint` would.

    In memory are a block, its statistics and activations up to a budget. The output grows in `<export_dir>.partial`,
    with a journal: a run that ended for any reason goes on from its last finished block, to the same bytes.

    Args:
        source: Folder of a checkpoint in safetensors that is not quantized.
        config: A preset's name or a config.
        data: Batches of calibration data, as for `quantize`; needed where activations have static scales.
        export_dir: A new or empty folder.
        target: Engine that will serve the checkpoint, as for `quantize`.
        tp: Tensor-parallel size it will be served with.
        dtype: Of the model; None for the one that its config names.
        tokenizer: Saved beside the weights when given.
        trust_remote_code: Run code that the checkpoint brings.
        resume: Go on with a run that was interrupted; begin one where there is none; leave a finished one as it is.
        overwrite: Replace a folder that Octavo wrote, and drop a run that was interrupted.
        max_shard_bytes: Start a new shard rather than exceed this.
        activation_budget: Bytes of activations in memory (`4GB`, say); all of them are on disk, too.
        stats_budget: Bytes of statistics in memory, as for `quantize`.
        quiet: Print nothing.
        log_json: A file that gets a JSON line for each part that is finished.

    Raises:
        ConfigError, PlanError: the config or an option is wrong, or the config cannot work on this model.
        UnsupportedError: an algorithm needs more of the model than a block, or its blocks cannot be run one by one.
        CheckpointError: the source is damaged or quantized already; file and tensor are named.
        CalibrationError: calibration yields nothing usable.
        ExportError: the folder cannot be written, another process writes it, or what is resumed is another run; the
            difference is named.
    """
    source, directory = Path(source), _place(Path(source), export_dir)
    batches = data if data is None or callable(data) else list(data)
    options = WriteOptions(None, tokenizer, overwrite, max_shard_bytes, quiet, target)
    loaded = load_config(config)
    algorithms = algorithms_of(loaded["algorithm"])
    check_local(algorithms)
    opened = open_model(source, loaded, dtype, trust_remote_code, target, tp, stats_budget, quiet)
    exporter = opened.plan.exporter or DEFAULT_EXPORTER
    part_exporter(exporter)
    if target is None:
        check_stored(opened.plan.layers, exporter)
    _check_data(opened, batches)
    plain_config: dict[str, Any] = json.loads(json.dumps(opened.plan.config))
    recipe = {"recipe": plain_config, "target": target, "tensor-parallel size": tp, "dtype": str(dtype)}
    recipe |= {"shard size": max_shard_bytes, "exporter": exporter}
    known = fingerprints(opened.headers, recipe, batches)
    run_options = RunOptions(
        exporter, target, _activation_bytes(activation_budget), parse_bytes(stats_budget), quiet
    )
    folder = directory.with_name(f"{directory.name}.partial")
    if resume and _is_finished(directory, known, overwrite):
        return _finished(directory, folder, quiet)
    check_place(directory, overwrite)
    files.make_folder(folder)
    with locked(folder), closing(_journal(folder, known, resume, overwrite)) as journal:
        output = GrowingOutput(folder, journal, max_shard_bytes)
        progress = Progress(len(opened.parts), quiet, None if log_json is None else Path(log_json))
        with closing(progress), measured() as cost:
            StreamRun(opened, algorithms, batches, output, run_options).run(progress)
        spelling = _spelling(opened, output, exporter, target)
        if EXTRAS not in output.finished:
            write_extras(opened, output, spelling)
        job = Finishing(opened, output, exporter, spelling, options, known, plain_config, cost)
        try:
            report = finish(job, directory)
        except OSError as error:
            raise ExportError(
                f"{error.filename or output.checkpoint} cannot be written: {error.strerror or error}. What is done is "
                f"kept in {folder}; make room there and go on with resume=True (--resume)"
            ) from error
    for warning in report.warnings:
        say(f"warning: {warning}", quiet)
    return report


def _place(source: Path, export_dir: str | Path | None) -> Path:
    """Return the folder to write, its links followed."""
    if export_dir is None:
        raise ExportError("export_dir is missing: give the folder to write the checkpoint to")
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder; give the folder of a checkpoint")
    directory = Path(export_dir).resolve()
    if source.resolve().is_relative_to(directory) or directory.is_relative_to(source.resolve()):
        raise ConfigError(
            f"{export_dir} and {source} are one folder, or one is in the other; give another folder"
        )
    return directory


def _activation_bytes(budget: int | str) -> int:
    """Return a budget in bytes; 0 keeps nothing in memory."""
    if budget in (0, "0"):
        return 0
    try:
        return parse_bytes(budget) or 0
    except ConfigError as error:
        raise ConfigError(
            f"activation_budget (--activation-budget) {budget!r}: expected a number of bytes, as 500000000, 500MB or "
            "2GiB"
        ) from error


def _check_data(opened: StreamedModel, data: Sequence[Any] | None) -> None:
    waiting = waiting_for_data(opened.plan.layers)
    if waiting and data is None:
        raise CalibrationError(
            f"{len(waiting)} quantizers need calibration data and none was given (--calib-data): {listed(waiting)}"
        )


def _journal(folder: Path, known: dict[str, str], resume: bool, overwrite: bool) -> Journal:
    """Open the journal of a run that goes on, or a new one in an empty folder."""
    path = folder / JOURNAL
    if path.exists() and not resume and not overwrite:
        raise ExportError(
            f"{folder} holds a run that was interrupted; go on with resume=True (--resume), or drop it with "
            "overwrite=True (--overwrite)"
        )
    if path.exists() and resume:
        journal = Journal(folder)
        started = journal.of_kind("start")
        if started:
            before = {**started[0]["fingerprints"], "journal": str(started[0]["version"])}
            check_same(before, {**known, "journal": str(VERSION)}, str(folder))
            return journal
        journal.close()
    for path in folder.iterdir():
        if path.name != "lock":
            files.remove(path)
    journal = Journal(folder)
    journal.add("start", version=VERSION, fingerprints=known)
    return journal


def _is_finished(directory: Path, known: dict[str, str], overwrite: bool) -> bool:
    """Whether a folder holds what this run would write; another run's is refused unless it may be replaced."""
    if not (directory / RECORD_FILE).is_file():
        return False
    found = read_json(directory / RECORD_FILE).get("fingerprints")
    if overwrite:
        return bool(found == known)
    check_same(found if isinstance(found, dict) else {}, known, str(directory))
    return True


def _finished(directory: Path, folder: Path, quiet: bool) -> ExportReport:
    """Return the report of a run that is finished; what is left of its folder is removed."""
    from octavo.core.report.files import read_report

    if folder.exists() and not (folder / CHECKPOINT).exists():
        files.remove(folder)
    report = read_report(directory)
    totals = report["totals"]
    say(f"{directory} is finished; nothing was done", quiet)
    return ExportReport(
        directory,
        totals["tensors"],
        totals["bytes"],
        tuple(report["warnings"]),
        report["exporter"],
        tuple(report["differences"]),
    )


def _spelling(opened: StreamedModel, output: GrowingOutput, exporter: str, target: str | None) -> Spelling:
    source = StreamedSource(opened, joined(output.finished.values()))
    return part_exporter(exporter).spelling(source, target)
