"""Names and files of transformers checkpoints."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from octavo.core.errors import ExportError, UnsupportedError, listed
from octavo.core.model.checkpoint_layout import Parts

# Files beside the weights that belong to the model and that no object in memory holds.
_COPIED = ("chat_template.jinja", "preprocessor_config.json", "processor_config.json")


def names_in_checkpoint(model: Any, names: Sequence[str]) -> Mapping[str, str]:
    """Return the name under which `save_pretrained` would write each parameter.

    Tensors without values go through transformers' own conversion, and are recognised on the other side.

    Raises:
        UnsupportedError: a parameter is stored as several tensors, or several as one.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tensors = model.state_dict()
    markers = {name: torch.empty(tensors[name].shape, device="meta") for name in names}
    own_names = {id(marker): name for name, marker in markers.items()}
    converted = revert_weight_conversion(model, markers)
    renamed = {own_names[id(marker)]: new for new, marker in converted.items() if id(marker) in own_names}
    fused = [name for name in names if name not in renamed]
    if fused:
        raise UnsupportedError(
            f"transformers stores {len(fused)} parameters of this {type(model).__name__} in another form than the "
            f"model has them ({listed(fused)}); fused parameters cannot be exported yet"
        )
    return renamed


def parts_in_checkpoint(model: Any, names: Sequence[str]) -> dict[str, Parts]:
    """Return how `save_pretrained` takes apart those of these parameters that stack experts.

    Small numbered tensors go through transformers' own conversion; the numbers that come out of it tell which
    expert, and which of equal row segments, each piece is.
    """
    from transformers.core_model_loading import revert_weight_conversion

    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name in set(names)}
    stacked = {name: shape[0] for name, shape in shapes.items() if len(shape) == 3}
    first, markers = 0, {}
    for name, number in stacked.items():
        markers[name] = torch.arange(first, first + 4 * number).reshape(number, 2, 2)
        first += 4 * number
    pieces = {
        tuple(piece.flatten().tolist()): new
        for new, piece in revert_weight_conversion(model, dict(markers)).items()
    }
    parts = {name: _parts_of(marker, pieces) for name, marker in markers.items()}
    return {name: found for name, found in parts.items() if found is not None}


def _parts_of(marker: torch.Tensor, pieces: Mapping[tuple[int, ...], str]) -> Parts | None:
    """Return the names of the pieces of one numbered tensor, or None if it was not taken apart in equal rows."""
    for num_segments in (1, 2):
        numbers = [
            [tuple(segment.flatten().tolist()) for segment in matrix.chunk(num_segments)] for matrix in marker
        ]
        if all(number in pieces for segments in numbers for number in segments):
            return tuple(tuple(pieces[number] for number in segments) for segments in numbers)
    return None


def write_companion_files(model: Any, directory: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """Write config.json, generation config, tokenizer and remote-code files of a transformers model.

    Raises:
        ExportError: transformers does not save the generation config.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = config.architectures or [type(model).__name__.removeprefix("FSDP")]
    if model.is_remote_code():
        from transformers.dynamic_module_utils import custom_object_save

        custom_object_save(model, directory, config=config)
    config.save_pretrained(directory)
    if model.can_generate():
        _write_generation_config(model, directory)
    source = Path(str(config._name_or_path))
    if config._name_or_path and source.is_dir():
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _write_generation_config(model: Any, directory: Path) -> None:
    try:
        model.generation_config.save_pretrained(directory)
    except ValueError as error:
        raise ExportError(
            f"transformers does not save this model's generation config: {error} Correct model.generation_config"
        ) from error
