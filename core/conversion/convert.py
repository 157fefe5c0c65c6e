"""Converting a quantized checkpoint into another dialect, tensor by tensor, without its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.core.console import say
from octavo.core.conversion.change import Change, share_of_codes
from octavo.core.conversion.choice import check_asked, chosen
from octavo.core.conversion.companions import check_config, copy_companions
from octavo.core.conversion.converted import ConvertedCheckpoint
from octavo.core.conversion.fitted import FittedCheckpoint
from octavo.core.conversion.survey import Survey, survey
from octavo.core.errors import CheckpointError, ConfigError, ExportError, listed
from octavo.core.evaluation.read_back import exporter_of
from octavo.core.model.atomic_folder import atomic_folder, check_place
from octavo.core.model.checkpoint_source import Ranks
from octavo.core.model.exporter import Exporter, OwnConfigExporter, QuantizedCheckpoint
from octavo.core.model.shards import check_shard_limit

RECORD_FILE = "octavo_conversion.json"


@dataclass(frozen=True)
class ConversionReport:
    """What was converted.

    Attributes:
        directory: The new checkpoint.
        dialect: Name of the exporter whose dialect it is in.
        source_dialect: The same of the checkpoint that was read.
        num_tensors: Number of tensors in its shards.
        num_bytes: Bytes of these tensors.
        changes: What the dialect could not hold exactly, the worst first; empty when all values are the same.
        share_of_codes: Share of all codes that changed.
        warnings: What the engine was never tried with.
    """

    directory: Path
    dialect: str
    source_dialect: str
    num_tensors: int
    num_bytes: int
    changes: tuple[Change, ...]
    share_of_codes: float
    warnings: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    export_dir: str | Path,
    dialect: str | None = None,
    target: str | None = None,
    lossy: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    quiet: bool = False,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    config: str | Path | None = None,
) -> ConversionReport:
    """Write a quantized checkpoint in another dialect; config, tokenizer and other files beside it are copied.

    Codes and scales stay as they are where the dialect can hold them. Where it cannot (scales in bf16, one scale for
    layers that engines join), the nearest codes under the scales that it can hold are written if `lossy` is on.
    A shard and a block are in memory; the folder appears whole or not at all, and is read back before.

    Args:
        source: A quantized checkpoint of any dialect that an installed exporter reads.
        export_dir: A new or empty folder, neither in `source` nor around it.
        dialect: Name of an exporter: `unified_hf`, `compressed_tensors`, `tensorrt_llm`.
        target: Engine that will serve it: `vllm`, `sglang`, `trtllm` or `transformers`. Its numbers are written, and
            its best dialect if none is given.
        lossy: Write the nearest numbers where the dialect cannot hold the exact ones.
        overwrite: Replace a folder that Octavo wrote.
        max_shard_bytes: Start a new shard rather than exceed this.
        quiet: Print no warnings; they are in the report.
        tp: Ranks that divide each layer of a TensorRT-LLM checkpoint, which has a file for each rank.
        pp: Its stages of consecutive blocks.
        ep: Groups of the ranks of a stage that divide the experts of a layer.
        config: Folder of the original model, whose config, tokenizer and code are copied, where `source` has none:
            for a TensorRT-LLM checkpoint. Its weights are not read.

    Raises:
        ConfigError: neither a dialect nor a target is given, the target is unknown, the folders are in each other,
            the checkpoint is in this dialect already, or it has no config of its model and `config` is missing.
        PluginError: the dialect is unknown.
        CheckpointError: `source` is no quantized checkpoint, is damaged, or not one of the model of `config`.
        ExportError: a format has no place in the dialect, the target refuses it, numbers would change and `lossy` is
            off, the model cannot be divided over the ranks, or the folder cannot be written.
    """
    source, export_dir, ranks = Path(source), Path(export_dir), Ranks(tp, pp, ep)
    check_asked(dialect, target, ranks)
    check_shard_limit(max_shard_bytes)
    _check_apart(source, export_dir)
    check_place(export_dir.resolve(), overwrite)
    reader = exporter_of(source)
    if reader.name == dialect and target is None:
        raise ConfigError(
            f"{source} is in the dialect {dialect} already; give another one, or a target whose numbers it should get"
        )
    given = None if config is None else Path(config)
    checkpoint, found = _opened(reader, source, given)
    choice = chosen(found, dialect, target, ranks)
    converted = ConvertedCheckpoint(checkpoint, found, choice.dialect)
    with atomic_folder(export_dir, overwrite) as folder:
        copy_companions(given or source, folder, None if given is None else checkpoint.dtype)
        num_tensors, num_bytes = choice.exporter.write(converted, folder, max_shard_bytes, target)
        changes = sorted(converted.changes, key=lambda c: (c.codes, c.steps, c.scales), reverse=True)
        report = ConversionReport(
            export_dir,
            choice.name,
            reader.name,
            num_tensors,
            num_bytes,
            tuple(changes),
            share_of_codes(changes, converted.num_codes),
            choice.unknown,
        )
        _check_exact(report, lossy)
        _write_record(report, folder)
    for warning in (*report.warnings, *_sentences(report)):
        say(f"warning: {warning}", quiet)
    return report


def _opened(reader: Exporter, source: Path, config: Path | None) -> tuple[QuantizedCheckpoint, Survey]:
    """Open a checkpoint and look at it once; one without a config of its model is held against that of `config`."""
    checkpoint = reader.open(source)
    check_config(source, isinstance(reader, OwnConfigExporter), config)
    if config is None:
        found = survey(checkpoint)
    else:
        checkpoint = fitted = FittedCheckpoint(checkpoint, config)
        found = survey(fitted)
        fitted.check_complete(found.names)
    if not found.weights and found.cache is None:
        raise CheckpointError(f"{source} has nothing to convert: no layer of it is quantized, nor its cache")
    return checkpoint, found


def _check_apart(source: Path, export_dir: Path) -> None:
    """Refuse folders of which one holds the other."""
    if not source.is_dir():
        raise CheckpointError(f"{source} does not exist; give the folder of a quantized checkpoint")
    read, written = source.resolve(), export_dir.resolve()
    if read.is_relative_to(written) or written.is_relative_to(read):
        raise ConfigError(
            f"{export_dir} and {source} are one folder, or one is in the other; give another folder"
        )


def _check_exact(report: ConversionReport, lossy: bool) -> None:
    if report.changes and not lossy:
        raise ExportError(
            f"{'; '.join(_sentences(report))}. Nothing was written; lossy=True (--lossy) writes the nearest numbers"
        )


def _sentences(report: ConversionReport) -> Sequence[str]:
    """Return what a user should know of what changed."""
    if not report.changes:
        return ()
    return (
        f"{report.dialect} cannot hold {len(report.changes)} tensors exactly, in which {report.share_of_codes:.2%} of "
        f"all codes change: {listed([str(change) for change in report.changes], 3)}",
    )


def _write_record(report: ConversionReport, folder: Path) -> None:
    """Write down where the numbers come from, and how they changed."""
    data = {
        "version": 1,
        "source_dialect": report.source_dialect,
        "dialect": report.dialect,
        "share_of_codes": report.share_of_codes,
        "changes": [asdict(change) for change in report.changes],
    }
    (folder / RECORD_FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
