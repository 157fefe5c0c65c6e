"""Writing a quantized model's checkpoint in any dialect: finalized, block by block, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.calibration.calibration_report import calibration_report
from octavo.core.calibration.finalize import finalization_notes, finalized, target_differences
from octavo.core.calibration.finalized import finalized_for
from octavo.core.console import say
from octavo.core.errors import ExportError, listed
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.blocks import BlockSource, blocks_of
from octavo.core.model.checkpoint_layout import CheckpointLayout
from octavo.core.model.checkpoint_source import CheckpointSource
from octavo.core.model.expert_layout import with_experts_apart
from octavo.core.model.export_report import ExportReport
from octavo.core.model.model_source import ModelSource, dtype_of, left_out_modules
from octavo.core.model.sharded import sharded_names
from octavo.core.model.shards import check_shard_limit
from octavo.core.model.spelled_files import Spelling, check_written, write_spelled
from octavo.core.model.stored_weight import StoredWeight, check_layout
from octavo.core.modules import PackedParameter, QuantExperts, dense_names, packed_layers, quantized_layers
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer
from octavo.core.ranks.led_blocks import led_by_first
from octavo.core.ranks.world import rank
from octavo.core.report.files import write_report
from octavo.core.report.run_report import run_report
from octavo.core.report.weight_error import WeightErrors
from octavo.core.report.weight_rows import weight_rows


@dataclass(frozen=True)
class WriteOptions:
    """What a user says of a checkpoint; see `octavo.export_hf_checkpoint`."""

    dtype: torch.dtype | None = None
    tokenizer: Any = None
    overwrite: bool = False
    max_shard_bytes: int = 5_000_000_000
    quiet: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        dtype = self.dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ExportError(
                f"dtype is that of the tensors that are not quantized, a float one; found {dtype!r}"
            )
        check_shard_limit(self.max_shard_bytes)


@dataclass(frozen=True)
class ModelExport:
    """What of a model is written, and how.

    Attributes:
        exporter: Name of the exporter.
        weights: The quantized weights, by the parameter's name.
        spelling: Returns how the dialect writes the finalized model.
        warnings: What the checkpoint will not hold, or nobody reads.
        differences: What differs from the peer's bytes beside the quantizers' numbers.
        stores_stacks: Whether the dialect knows weights that are stacked in one tensor.
    """

    exporter: str
    weights: dict[str, StoredWeight]
    spelling: Callable[[CheckpointSource], Spelling]
    warnings: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    stores_stacks: bool = False


def write_checkpoint(
    model: nn.Module, export_dir: Path, export: ModelExport, options: WriteOptions
) -> ExportReport:
    """Write `model`, finalized for the time of writing; everything is read back before the folder appears.

    Of a model that FSDP2 or ZeRO-3 divides, rank 0 writes, and has a block at a time; every rank calls this.

    Raises:
        ExportError: the model is finalized for something else, a tensor is not finite, or the folder cannot be
            written.
        CheckpointError: what was written does not read back.
    """
    with dense_names(model):
        description = plugins().describe_model(model)
    if sharded_names(model):
        report = led_by_first(
            model, description, lambda blocks: _write(model, blocks, export_dir, export, options)
        )
    else:
        report = _write(model, blocks_of(model, description), export_dir, export, options)
    quiet = options.quiet or rank() != 0
    for warning in report.warnings:
        say(f"warning: {warning}", quiet)
    for difference in report.differences:
        say(f"for {options.target}: {difference}", quiet)
    return report


def _write(
    model: nn.Module, blocks: BlockSource, export_dir: Path, export: ModelExport, options: WriteOptions
) -> ExportReport:
    with dense_names(model), atomic_folder(export_dir, options.overwrite) as folder:
        write_companions(model, folder, options)
        errors = WeightErrors()
        with finalized_as(model, export.exporter, options.target):
            layout = model_layout(model, export.weights)
            check_layout(export.weights, layout, export.stores_stacks)
            untried = _whole_stacks(model, export.weights)
            source = ModelSource(model, export.weights, layout, options.dtype, errors, blocks)
            # Shards end here: what is not written yet is the model's own memory, finalized.
            written = write_spelled(source, export.spelling(source), folder, options.max_shard_bytes)
            differences = target_differences(model) + export.differences
            rows = weight_rows(export.weights, errors.sqnr, calibration_report(model).get("weights", []))
            untried_notes = _untried_experts(untried, options.target)
            warnings = (*export.warnings, *untried_notes, *finalization_notes(model))
        check_written(folder, written, export.exporter)
        report = ExportReport(
            export_dir, len(written.manifest), written.num_bytes, warnings, export.exporter, differences
        )
        write_report(folder, run_report(model, rows, report, left_out_modules(model, export.weights)))
    return report


def finalized_as(model: nn.Module, exporter: str, target: str | None) -> AbstractContextManager[None]:
    """Return a context in which the model has the numbers of an exporter's dialect; it may have them already.

    Raises:
        ExportError: the model is finalized for something else.
    """
    own = plugins().exporter(exporter)
    name = (own.dialect if target is None else own.dialect_for(target)).name
    other = finalized_for(model)
    check_finalized_as(model, name)
    return nullcontext() if other == name else finalized(model, exporter, target)


def check_finalized_as(model: nn.Module, name: str) -> None:
    """Refuse a model that has other numbers than a dialect's, and cannot get these.

    Raises:
        ExportError: it is finalized for something else, or its weights are packed in other numbers.
    """
    other = finalized_for(model)
    if any(True for _ in packed_layers(model)) and other != name:
        raise ExportError(
            f"the model's weights are packed in the numbers of {other or 'the simulation (neutral)'}, asked for "
            f"{name}. "
            + (
                f"Export it as {other} and give that checkpoint to octavo.convert_checkpoint, or compress"
                if other is not None
                else "Compress"
            )
            + " the quantized original with the dialect and target that it will be exported for"
        )
    if other not in (None, name):
        raise ExportError(f"the model is finalized for {other}; call octavo.unfinalize(model) first")


def write_companions(model: nn.Module, folder: Path, options: WriteOptions) -> None:
    """Write the files beside the weights; a config.json with the dtype, which readers need, in any case."""
    dtype = options.dtype or dtype_of(model)
    plugins().write_companions(model, folder, options.tokenizer, dtype)
    config = folder / "config.json"
    if not config.exists():
        config.write_text(json.dumps({"dtype": str(dtype).removeprefix("torch.")}), encoding="utf-8")


def _untried_experts(names: Sequence[str], target: str | None) -> Iterator[str]:
    if target is not None and names:
        yield (
            f"the framework's checkpoints hold the experts of {listed(names, 2)} in one tensor; whether {target} loads "
            "their quantized form was never tried"
        )


def model_layout(model: nn.Module, weights: Mapping[str, StoredWeight]) -> CheckpointLayout:
    """Return where every tensor of the model is in the checkpoint, quantizer state left out.

    Quantized experts that the framework's checkpoints hold in one tensor are taken apart.

    Args:
        model: The model.
        weights: Its quantized weights, by the parameter's name.
    """
    experts = {
        name: type(layer) for name, layer in quantized_layers(model) if isinstance(layer, QuantExperts)
    }
    return with_experts_apart(_framework_layout(model), model, experts, lambda name, _: name in weights)


def _framework_layout(model: nn.Module) -> CheckpointLayout:
    modules = model.named_modules(
        remove_duplicate=False
    )  # a shared layer under all of its names, as state dicts
    own = tuple(
        f"{name}." for name, module in modules if isinstance(module, TensorQuantizer | PackedParameter)
    )
    names = [name for name in model.state_dict() if not name.startswith(own)]
    return plugins().checkpoint_layout(model, names)


def _whole_stacks(model: nn.Module, weights: Mapping[str, StoredWeight]) -> list[str]:
    """Return the quantized stacks that the framework's checkpoints hold in one tensor."""
    stacked = [name for name, weight in weights.items() if weight.slot.is_stacked]
    return [name for name in stacked if name in _framework_layout(model).names] if stacked else []
