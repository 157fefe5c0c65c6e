"""The files beside a checkpoint's weights, which a converted one keeps: config, tokenizer, templates, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from octavo.core.model.shard_reader import read_json

_CONFIG = "config.json"
# Weights in any form, and what describes the checkpoint's own dialect, files or run.
_LEFT_OUT = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack",
    "hf_quant_config.json", "quantize_config.json", "quant_config.json", "octavo_*.json", "report.json", "report.html",
)  # fmt: skip


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files beside the weights of `source`, folders included; config.json without its `quantization_config`.

    Files are copied where they are links, as those of Hugging Face's cache are.

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
        (folder / _CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _companions(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        is_left_out = any(part.startswith(".") for part in parts) or any(
            fnmatch(path.name, pattern) for pattern in _LEFT_OUT
        )
        if path.is_file() and not is_left_out and parts != (_CONFIG,):
            yield path
