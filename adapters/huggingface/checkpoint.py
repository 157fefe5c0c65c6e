"""Names and files of transformers checkpoints."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from octavo.core.errors import ExportError, UnsupportedError, listed

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


def write_companion_files(model: Any, directory: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """Write config.json, generation config, tokenizer and remote-code files of a transformers model.

    Raises:
        ExportError: transformers does not save the generation config.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [
        type(model).__name__.removeprefix("FSDP")
    ]  # not that of the checkpoint it began as
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
