"""Writing a quantized model's checkpoint in any dialect: finalized, block by block, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.core.calibration.calibration_report import calibration_report
from octavo.core.calibration.finalize import finalization_notes, finalized, target_differences
from octavo.core.calibration.finalized import finalized_for
from octavo.core.console import say
from octavo.core.errors import ExportError, listed
from octavo.core.model.atomic_folder import atomic_folder
from octavo.core.model.blocks import InMemoryBlocks
from octavo.core.model.checkpoint_layout import CheckpointLayout, Place
from octavo.core.model.expert_layout import with_experts_apart
from octavo.core.model.export_report import ExportReport
from octavo.core.model.module_names import module_names
from octavo.core.model.shard_reader import write_manifest
from octavo.core.model.shards import SafetensorsWriter, check_shard_limit, verify_shards
from octavo.core.model.stored_weight import StoredWeight, check_layout, part_name
from octavo.core.modules import QuantExperts, quantized_layers
from octavo.core.packed import PackedTensor
from octavo.core.plugins import plugins
from octavo.core.quantizers import TensorQuantizer
from octavo.core.report.files import write_report
from octavo.core.report.run_report import run_report
from octavo.core.report.weight_error import WeightErrors
from octavo.core.report.weight_rows import weight_rows

NamedTensors = Iterator[tuple[str, Tensor]]


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
class Spelling:
    """How a dialect writes a model.

    Attributes:
        exporter: Name of the exporter.
        weights: The quantized weights, by the parameter's name.
        spell: Returns {suffix: tensor} of one weight; told whether it is a segment of an expert's rows.
        companions: Returns {suffix: tensor} of what goes with a weight's codes and scales: its input's scale, say.
        other_tensors: Yields further tensors, given the modules' names in the checkpoint.
        write_metadata: Writes the dialect's files, given the layout, the modules' names and the folder.
        warnings: What the checkpoint will not hold, or nobody reads.
        differences: What differs from the peer's bytes beside the quantizers' numbers.
        stores_stacks: Whether `spell` knows weights that are stacked in one tensor.
    """

    exporter: str
    weights: dict[str, StoredWeight]
    spell: Callable[[PackedTensor, bool], dict[str, Tensor]]
    companions: Callable[[StoredWeight], dict[str, Tensor]]
    other_tensors: Callable[[Mapping[str, str]], NamedTensors]
    write_metadata: Callable[[CheckpointLayout, Mapping[str, str], Path], None]
    warnings: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    stores_stacks: bool = False


def write_checkpoint(
    model: nn.Module, export_dir: Path, spelling: Spelling, options: WriteOptions
) -> ExportReport:
    """Write `model`, finalized for the time of writing; everything is read back before the folder appears.

    Raises:
        ExportError: the model is finalized for something else, a tensor is not finite, or the folder cannot be
            written.
        CheckpointError: what was written does not read back.
    """
    with atomic_folder(export_dir, options.overwrite) as folder:
        _write_companions(model, folder, options)
        writer, num_bytes, errors = SafetensorsWriter(folder, options.max_shard_bytes), 0, WeightErrors()
        with finalized_as(model, spelling.exporter, options.target):
            layout = model_layout(model, spelling.weights)
            check_layout(spelling.weights, layout, spelling.stores_stacks)
            untried = _whole_stacks(model, spelling.weights)
            modules = module_names(layout.names)
            spelling.write_metadata(layout, modules, folder)
            tensors = _tensors(model, spelling, layout, options.dtype, errors)
            for name, tensor in chain(tensors, spelling.other_tensors(modules)):
                writer.add(name, tensor)
                num_bytes += tensor.nbytes
            differences = target_differences(model) + spelling.differences
            rows = weight_rows(spelling.weights, errors.sqnr, calibration_report(model).get("weights", []))
            untried_notes = _untried_experts(untried, options.target)
            warnings = (*spelling.warnings, *untried_notes, *finalization_notes(model))
            manifest = writer.finish()  # what is not written yet is the model's own memory, finalized
        verify_shards(folder, manifest)
        write_manifest(folder, manifest)
        _check_readable(folder, spelling.exporter)
        report = ExportReport(export_dir, len(manifest), num_bytes, warnings, spelling.exporter, differences)
        left_out = left_out_modules(model, spelling.weights)
        write_report(folder, run_report(model, rows, report, left_out))
    for warning in warnings:
        say(f"warning: {warning}", options.quiet)
    for difference in differences:
        say(f"for {options.target}: {difference}", options.quiet)
    return report


def left_out_modules(model: nn.Module, weights: Mapping[str, StoredWeight]) -> list[str]:
    """Return the modules with a weight of two dims or more, or stacked weights, none of which is quantized."""
    return [name for name, module in model.named_modules() if _is_left_out(name, module, weights)]


def _is_left_out(name: str, module: nn.Module, weights: Mapping[str, StoredWeight]) -> bool:
    own = dict(module.named_parameters(name, recurse=False))
    matrices = [
        own_name
        for own_name, parameter in own.items()
        if parameter.dim() == 3 or (parameter.dim() > 1 and own_name.rpartition(".")[2] == "weight")
    ]
    return bool(matrices) and not any(matrix in weights for matrix in matrices)


def finalized_as(model: nn.Module, exporter: str, target: str | None) -> AbstractContextManager[None]:
    """Return a context in which the model has the numbers of an exporter's dialect; it may have them already.

    Raises:
        ExportError: the model is finalized for something else.
    """
    own = plugins().exporter(exporter)
    name = (own.dialect if target is None else own.dialect_for(target)).name
    other = finalized_for(model)
    if other not in (None, name):
        raise ExportError(f"the model is finalized for {other}; call octavo.unfinalize(model) first")
    return nullcontext() if other == name else finalized(model, exporter, target)


def _write_companions(model: nn.Module, folder: Path, options: WriteOptions) -> None:
    """Write the files beside the weights; a config.json with the dtype, which readers need, in any case."""
    dtype = options.dtype or _dtype_of(model)
    plugins().write_companions(model, folder, options.tokenizer, dtype)
    config = folder / "config.json"
    if not config.exists():
        config.write_text(json.dumps({"dtype": str(dtype).removeprefix("torch.")}), encoding="utf-8")


def _check_readable(folder: Path, exporter: str) -> None:
    """Read a written checkpoint's files and scales as its users will; `verify_shards` has read the weights."""
    checkpoint = plugins().exporter(exporter).open(folder)
    checkpoint.activations()
    checkpoint.describe()


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


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
    framework = _framework_layout(model)
    experts = {
        name: type(layer) for name, layer in quantized_layers(model) if isinstance(layer, QuantExperts)
    }
    return with_experts_apart(framework, model, experts, lambda name, _: name in weights)


def _framework_layout(model: nn.Module) -> CheckpointLayout:
    modules = model.named_modules(
        remove_duplicate=False
    )  # a shared layer under all of its names, as state dicts
    quantizers = tuple(f"{name}." for name, module in modules if isinstance(module, TensorQuantizer))
    names = [name for name in model.state_dict() if not name.startswith(quantizers)]
    return plugins().checkpoint_layout(model, names)


def _whole_stacks(model: nn.Module, weights: Mapping[str, StoredWeight]) -> list[str]:
    """Return the quantized stacks that the framework's checkpoints hold in one tensor."""
    stacked = [name for name, weight in weights.items() if weight.slot.is_stacked]
    return [name for name in stacked if name in _framework_layout(model).names] if stacked else []


def _tensors(
    model: nn.Module,
    spelling: Spelling,
    layout: CheckpointLayout,
    dtype: torch.dtype | None,
    errors: WeightErrors,
) -> NamedTensors:
    """Yield every tensor but the dialect's others, block by block; tied ones once, under their first name."""
    source = InMemoryBlocks(model, plugins().describe_model(model))
    tied = model.state_dict(keep_vars=True)
    written: set[int] = set()
    places: dict[str, list[tuple[str, Place]]] = {}
    for new, place in layout.places().items():
        places.setdefault(place.name, []).append((new, place))
    for block in source.blocks():
        with source.materialized(block) as module:
            values = module.state_dict(prefix=f"{block.name}." if block.name else "")
            for name in block.tensors:
                if name not in places or id(tied[name]) in written:
                    continue
                written.add(id(tied[name]))
                if name in spelling.weights:
                    yield from _weight_tensors(spelling, spelling.weights[name], layout, errors)
                    continue
                value = _plain_value(name, values[name], dtype)
                yield from ((new, place.of(value).contiguous()) for new, place in places[name])


def _plain_value(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor that is not quantized in the dtype to write it in."""
    value = value.to(dtype) if dtype and value.is_floating_point() else value
    if value.is_floating_point() and value.itemsize > 1 and not value.isfinite().all():
        raise ExportError(
            f"{name} has NaN or infinite values as {value.dtype}, which no engine computes with; repair the model, or "
            "choose a dtype with a larger range"
        )
    return value


def _weight_tensors(
    spelling: Spelling, weight: StoredWeight, layout: CheckpointLayout, errors: WeightErrors
) -> NamedTensors:
    for base, packed, is_segment in weight.packed(layout, errors):
        for suffix, tensor in {**spelling.spell(packed, is_segment), **spelling.companions(weight)}.items():
            yield part_name(base, suffix, packed.spec.is_stacked), tensor
