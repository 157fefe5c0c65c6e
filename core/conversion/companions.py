"""The files beside a checkpoint's weights, which a converted one keeps: config, tokenizer, templates, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import torch

from octavo.core.errors import ConfigError
from octavo.core.model.shard_reader import read_json

_CONFIG = "config.json"
# Weights in any form, and what describes the checkpoint's own dialect, files or run.
_LEFT_OUT = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack",
    "hf_quant_config.json", "quantize_config.json", "quant_config.json", "octavo_*.json", "report.json", "report.html",
)  # fmt: skip


def check_config(source: Path, has_own: bool, config: Path | None) -> None:
    """Refuse a checkpoint without the framework's config where the user gives none; and one too many.

    Args:
        source: The checkpoint.
        has_own: Whether its config.json is the dialect's own, in the place of the framework's.
        config: Where the framework's is, or None.

    Raises:
        ConfigError: `config` is missing, is not needed, or has no config.json of a framework.
        CheckpointError: its config.json is no JSON object.
    """
    if not has_own and config is not None:
        raise ConfigError(
            f"{source} has the config and the tokenizer of its model, and {config} is given for them; leave config out"
        )
    if has_own and config is None:
        raise ConfigError(
            f"{source / _CONFIG} is not that of the model's framework, which the new checkpoint needs beside its "
            "weights; give the folder of the original model (config, --config), whose config, tokenizer and code are "
            "copied"
        )
    if config is not None and not (
        (config / _CONFIG).is_file() and "model_type" in read_json(config / _CONFIG)
    ):
        raise ConfigError(
            f"{config} must hold the {_CONFIG} of the model's framework, which names its model_type"
        )


def copy_companions(source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Copy the files beside the weights of `source`, folders included; config.json without its `quantization_config`.

    With a `dtype` config.json names that one, which a config of other weights need not do. Files are
    copied where they are links, as those of Hugging Face's cache are.

    Raises:
        CheckpointError: config.json is no JSON object.
        OSError: a file cannot be copied.
    """
    for path in _companions(source):
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    if (source / _CONFIG).exists():
        config = read_json(source / _CONFIG)
        config.pop("quantization_config", None)
        if dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / _CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _companions(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        is_left_out = any(part.startswith(".") for part in parts) or any(
            fnmatch(path.name, pattern) for pattern in _LEFT_OUT
        )
        if path.is_file() and not is_left_out and parts != (_CONFIG,):
            yield path
