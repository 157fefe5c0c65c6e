"""The end of a run: what belongs to no part, the files beside the weights, a last look, and the folder's final name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.errors import ExportError, listed
from octavo.core.model.checkpoint_writer import WriteOptions, write_companions
from octavo.core.model.export_report import ExportReport
from octavo.core.model.model_source import left_out_modules
from octavo.core.model.read_back import verify_shards
from octavo.core.model.shard_file import ManifestEntry
from octavo.core.model.shard_reader import write_manifest
from octavo.core.model.shards import INDEX_NAME, SINGLE_NAME
from octavo.core.model.spelled_files import Spelling, WrittenShards, check_written, write_metadata
from octavo.core.modes.record import ModeRecord, set_history
from octavo.core.report.files import write_report
from octavo.core.report.run_report import run_report
from octavo.core.streaming import files
from octavo.core.streaming.output import GrowingOutput
from octavo.core.streaming.records import PartRecord, joined
from octavo.core.streaming.source_weights import SourceWeights
from octavo.core.streaming.streamed_model import StreamedModel

EXTRAS = "extras"
RECORD_FILE = "octavo_stream.json"


@dataclass(frozen=True)
class Finishing:
    """What the end of a run needs.

    Attributes:
        opened: The model.
        output: The run's folder.
        exporter: Name of the exporter.
        spelling: How the dialect writes the whole.
        options: As of every export.
        fingerprints: Of the run.
        config: The config, as it was read.
        cost: Time and memory of the run.
    """

    opened: StreamedModel
    output: GrowingOutput
    exporter: str
    spelling: Spelling
    options: WriteOptions
    fingerprints: dict[str, str]
    config: dict[str, Any]
    cost: dict[str, Any]


def write_extras(opened: StreamedModel, output: GrowingOutput, spelling: Spelling) -> None:
    """Write the scales of the cache, and the source's tensors that the model has no place for, as they are."""
    spool = output.spool()
    for name, tensor in spelling.other_tensors.items():
        spool.add(name, tensor)
    for name in opened.weights.leftover:
        spool.add(name, opened.weights.raw(name))
    output.commit(EXTRAS, spool, PartRecord(source=list(opened.weights.leftover)))


def finish(job: Finishing, directory: Path) -> ExportReport:
    """Make a whole checkpoint of finished parts, and give it its name; can be begun again wherever it was left.

    Raises:
        ExportError: a tensor of the source was read twice or never, or the folder cannot be written.
        CheckpointError: what was written does not read back.
    """
    record = joined(job.output.finished.values())
    check_accounted(job.opened.weights, job.opened.headers.tensors.keys(), record.source)
    job.output.write_shards(is_last=True)
    folder = job.output.checkpoint
    manifest = _named_shards(job.output)
    write_companions(job.opened.model, folder, job.options)
    write_metadata(job.spelling, folder)
    verify_shards(folder, manifest)
    check_written(folder, WrittenShards(manifest, job.output.num_bytes()), job.exporter)
    report = ExportReport(
        directory,
        len(manifest),
        job.output.num_bytes(),
        (*record.warnings, *_leftover_notes(job.opened.weights)),
        job.exporter,
        tuple(record.differences),
    )
    write_manifest(folder, manifest)
    _write_report(job, record, report)
    files.write_json(folder / RECORD_FILE, {"version": 1, "fingerprints": job.fingerprints})
    for path in sorted(folder.rglob("*")):
        files.sync(path)
    put_in_place(job.output.folder, folder, directory)
    return report


def put_in_place(run: Path, checkpoint: Path, directory: Path) -> None:
    """Give the checkpoint its final name, in place of what is there, and remove the run's folder."""
    if checkpoint.exists():
        old = run / "replaced"
        if directory.exists():
            files.remove(old)
            files.rename(directory, old)
        files.rename(checkpoint, directory)
    files.remove(run)


def check_accounted(weights: SourceWeights, names: Any, read: list[str]) -> None:
    """Hold what was read against what the source has.

    Raises:
        ExportError: a tensor was read twice, or never; it is named.
    """
    counts = Counter(read)
    twice = sorted(name for name, count in counts.items() if count > 1)
    never = sorted(names - counts.keys())
    if twice or never:
        raise ExportError(
            f"of the source's {len(names)} tensors, {len(never)} were never written ({listed(never, 3)}) and "
            f"{len(twice)} twice ({listed(twice, 3)}); this is a fault of Octavo: quantize this model in memory"
        )


def _named_shards(output: GrowingOutput) -> dict[str, ManifestEntry]:
    """Give shards their names, now that their number is known; write the index of several."""
    manifest = output.manifest()
    count = len({entry.shard for entry in manifest.values()})
    names = {
        str(number): SINGLE_NAME if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    }
    for number, name in names.items():
        if output.shard_part(int(number)).exists():
            files.rename(output.shard_part(int(number)), output.checkpoint / name)
    named = {name: replace(entry, shard=names[entry.shard]) for name, entry in manifest.items()}
    if count > 1:
        weight_map = {name: named[name].shard for name in sorted(named)}
        index = {"metadata": {"total_size": output.num_bytes()}, "weight_map": weight_map}
        files.write_json(output.checkpoint / INDEX_NAME, index, indent=2)
    return named


def _leftover_notes(weights: SourceWeights) -> list[str]:
    if not weights.leftover:
        return []
    return [
        f"{len(weights.leftover)} tensors of the source belong to no layer of the model and are copied as they are: "
        f"{listed(weights.leftover, 3)}"
    ]


def _write_report(job: Finishing, record: PartRecord, report: ExportReport) -> None:
    model = job.opened.model
    noted = {
        "changed_weights": record.changed,
        "tokens_per_expert": record.log["tokens_per_expert"],
        "warnings": record.log["warnings"],
        "cost": {**job.cost, "seconds_of": record.log["seconds"]},
    }
    set_history(model, (ModeRecord("quantize", 1, job.config, {"same_input": [], "report": noted}),))
    left_out = left_out_modules(model, set(record.weights))
    write_report(job.output.checkpoint, run_report(model, record.rows, report, left_out))
