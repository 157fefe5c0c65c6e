"""Writing one calibrated part of a model: finalized, packed and spelled, tensor by tensor into a spool."""

from __future__ import annotations

from typing import cast

from torch import nn

from octavo.core.calibration.finalize import finalization_notes, target_differences
from octavo.core.calibration.smoothing_fold import format_of
from octavo.core.errors import UnsupportedError
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_writer import ModelExport, finalized_as
from octavo.core.model.model_source import ModelSource
from octavo.core.model.serving import active_specs
from octavo.core.model.spelled_files import spelled_tensors
from octavo.core.model.stored_weight import check_layout
from octavo.core.modules import QuantAttention, quantized_layers
from octavo.core.plugins import plugins
from octavo.core.report.weight_error import WeightErrors
from octavo.core.report.weight_rows import weight_rows
from octavo.core.streaming.part_calibration import PartNotes
from octavo.core.streaming.part_exporter import PartExporter
from octavo.core.streaming.records import PartRecord, format_to_json, state_to_json
from octavo.core.streaming.spool import Spool


def part_exporter(name: str) -> PartExporter:
    """Return the exporter called `name`.

    Raises:
        UnsupportedError: it does not write block by block.
    """
    found = plugins().exporter(name)
    if not isinstance(found, PartExporter):
        raise UnsupportedError(
            f"the exporter {name} writes whole models only; quantize in memory (leave out --stream)"
        )
    return cast(PartExporter, found)


def write_part(
    part: nn.Module,
    exporter: str,
    target: str | None,
    layout: CheckpointLayout,
    notes: PartNotes,
    source: list[str],
    spool: Spool,
) -> PartRecord:
    """Write the tensors of a part, in the order of the checkpoint; return what is to be known of it.

    Args:
        part: The part, calibrated.
        exporter: Name of the exporter whose dialect it is written in.
        target: Engine that will serve it, or None.
        layout: Where the checkpoint has its tensors.
        notes: What calibration noted.
        source: Names of the source's tensors that it was made of.
        spool: Takes the tensors.

    Raises:
        ExportError: a format has no place in the dialect, or a tensor is not finite.
    """
    if not _is_quantized(part):
        _write_plain(part, layout, spool)
        return PartRecord(source=source, changed=notes.changed, log=notes.log)
    errors = WeightErrors()
    export = part_exporter(exporter).part(part, target)
    check_layout(export.weights, layout, export.stores_stacks)
    with finalized_as(part, exporter, target):
        written = ModelSource(part, export.weights, layout, None, errors)
        for name, tensor in spelled_tensors(written, export.spelling(written)):
            spool.add(name, tensor)
        return PartRecord(
            source=source,
            weights=list(export.weights),
            layers={name: format_to_json(layer) for name, layer in written.layers.items()},
            folded=sorted(written.folded),
            caches={name: state_to_json(state) for name, state in written.cache_states().items()},
            cache=None if written.cache is None else written.cache.to_json(),
            rows=weight_rows(export.weights, errors.sqnr, notes.rows),
            changed=notes.changed,
            warnings=_warnings(part, export),
            differences=[*target_differences(part), *export.differences],
            log=notes.log,
        )


def _warnings(part: nn.Module, export: ModelExport) -> list[str]:
    return [*export.warnings, *finalization_notes(part)]


def _write_plain(part: nn.Module, layout: CheckpointLayout, spool: Spool) -> None:
    for item in ModelSource(part, {}, layout, None, WeightErrors()).tensors():
        assert isinstance(item, tuple)  # noqa: S101 (nothing is packed)
        spool.add(*item)


def _is_quantized(part: nn.Module) -> bool:
    """Whether a weight of the part is quantized, or a cache."""
    return any(
        (isinstance(layer, QuantAttention) and bool(active_specs(layer)))
        or any(format_of(layer, slot) is not None for slot in layer.weight_slots())
        for _, layer in quantized_layers(part)
    )
