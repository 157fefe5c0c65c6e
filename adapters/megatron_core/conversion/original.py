"""Original: the Hugging Face model that a Megatron model is, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.adapters.megatron_core.conversion.tensors import MegatronTensor, megatron_tensors
from octavo.core.errors import CheckpointError, UnsupportedError
from octavo.core.model.description import ModelDescription
from octavo.core.model.shard_reader import config_dtype, read_json
from octavo.core.model.skeleton import Skeleton
from octavo.core.plugins import plugins

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Original:
    """A Hugging Face checkpoint's folder.

    Attributes:
        directory: The folder; for exporting, one with the config alone will do.
        dtype: Of its weights.
        skeleton: Its model on the meta device.
        description: What its layers are.
        tensors: The parameters of the Megatron model that it is, by name.
    """

    directory: Path
    dtype: torch.dtype
    skeleton: Skeleton
    description: ModelDescription
    tensors: dict[str, MegatronTensor]

    @classmethod
    def of(cls, directory: str | Path, dtype: torch.dtype | None = None) -> Original:
        """Look at a folder with a Hugging Face config.

        Raises:
            CheckpointError: it has none, or holds a quantized checkpoint.
            UnsupportedError: no family map knows the model, or Megatron-core has no place for parts of it.
        """
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory} has no config.json; give the folder of a Hugging Face model")
        plugins().check_unquantized(directory)
        dtype = dtype or config_dtype(read_json(directory / "config.json"), directory)
        skeleton = Skeleton.of(directory, dtype, lambda _: False)
        description = plugins().describe_model(skeleton.model)
        _read_generation_config(skeleton.model, directory)
        if description is None:
            raise UnsupportedError(
                f"no family map describes the {type(skeleton.model).__name__} of {directory}; Megatron-core's layers "
                "are found by its roles"
            )
        return cls(directory, dtype, skeleton, description, megatron_tensors(skeleton, description))

    @property
    def config(self) -> Any:
        """Its Hugging Face config."""
        return self.skeleton.model.config

    def tokenizer(self) -> Any:
        """Return its tokenizer, or None where the folder has none."""
        has_one = any((self.directory / name).is_file() for name in _TOKENIZER_FILES)
        return plugins().load_tokenizer(self.directory, False) if has_one else None


def _read_generation_config(model: Any, directory: Path) -> None:
    """Give the model the generation config of the folder, which building it from its config does not read."""
    if (directory / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(directory)
