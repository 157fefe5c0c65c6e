"""Files beside the weights of transformers checkpoints."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch

from octavo.adapters.huggingface.saving import forget_record
from octavo.core.errors import ExportError

# Files beside the weights that belong to the model and that no object in memory holds.
_COPIED = ("chat_template.jinja", "preprocessor_config.json", "processor_config.json")


def write_companion_files(model: Any, directory: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """Write config.json, generation config, tokenizer and remote-code files of a transformers model.

    Raises:
        ExportError: transformers does not save the generation config.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    forget_record(config)
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
