"""Small checkpoints on disk, streamed runs of them, and a disk that fails where it is told to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import octavo
from octavo.core.plugins import plugins
from octavo.core.streaming import files
from octavo.core.streaming.quantize_checkpoint import quantize_checkpoint

SHARD = 10_000
PRESET = "FP8_DEFAULT_CFG"
# What says how long a run took; everything else is the same in every run.
_TIMED = ("report.json", "report.html", "octavo_stream.json")


def small_llama(**changes: Any) -> nn.Module:
    """A Llama of two blocks: hidden 32, feed-forward 64, in bf16."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(**{**sizes, **changes})
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def small_source(folder: Path, **changes: Any) -> Path:
    """Its checkpoint, in several shards."""
    small_llama(**changes).save_pretrained(folder, max_shard_size=changes.pop("max_shard_size", "20KB"))
    return folder


def small_data() -> list[Tensor]:
    """Two batches of token ids [2, 12]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 64, (2, 12), generator=generator) for _ in range(2)]


def stream(source: Path, out: Path, config: Any = PRESET, **options: Any) -> Any:
    """Quantize in a stream, quietly."""
    settings = {"data": small_data(), "quiet": True, "max_shard_bytes": SHARD, **options}
    return quantize_checkpoint(source, config, export_dir=out, **settings)


def in_memory(
    source: Path, out: Path, config: Any = PRESET, data: Any = None, target: str | None = None
) -> Path:
    """Quantize the usual way."""
    model = plugins().load_model(source, None, False, True)
    octavo.quantize(model, config, small_data() if data is None else data, quiet=True, target=target)
    octavo.export_hf_checkpoint(model, export_dir=out, quiet=True, max_shard_bytes=SHARD, target=target)
    return out


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint that no clock decides on."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name not in _TIMED
    }


class Crash(BaseException):
    """The machine stopped; nothing in the program may catch it."""


class CrashingDisk(files.Disk):
    """Stops at one of its calls, and does nothing any more from there on.

    Args:
        at: Number of the call, from 0; None never stops.
        loses_power: What was not synced is gone, too; otherwise half of what was being written is there.
    """

    def __init__(self, at: int | None = None, loses_power: bool = False) -> None:
        self.calls: list[str] = []
        self._at = at
        self._loses_power = loses_power
        self._synced: dict[str, int] = {}
        self._renamed: list[tuple[Path, Path]] = []

    def write(self, descriptor: int, data: memoryview) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._synced.setdefault(path, os.fstat(descriptor).st_size)
        if self._is_over(f"write {path}"):
            os.write(descriptor, data[: len(data) // 2])
            self._stop()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        super().sync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._synced.pop(path, None)
        self._renamed = [(old, new) for old, new in self._renamed if str(new.parent) != path]

    def rename(self, old: Path, new: Path) -> None:
        self._step(f"rename {old.name} {new.name}")
        super().rename(old, new)
        self._renamed.append((old, new))

    def remove(self, path: Path) -> None:
        self._step(f"remove {path.name}")
        super().remove(path)

    def make_folder(self, path: Path) -> None:
        self._step(f"make {path.name}")
        super().make_folder(path)

    def cut(self, path: Path, length: int) -> None:
        self._step(f"cut {path.name}")
        super().cut(path, length)

    def _step(self, what: str) -> None:
        if self._is_over(what):
            self._stop()

    def _is_over(self, what: str) -> bool:
        if self._at is not None and len(self.calls) > self._at:
            raise Crash
        self.calls.append(what)
        return self._at is not None and len(self.calls) > self._at

    def _stop(self) -> None:
        if self._loses_power:
            for path, length in self._synced.items():
                if os.path.exists(path):
                    os.truncate(path, length)
            for old, new in reversed(self._renamed):
                new.rename(old)
        raise Crash


def crashed(monkeypatch: pytest.MonkeyPatch, disk: CrashingDisk, *arguments: Any, **options: Any) -> bool:
    """Stream on a disk that may stop; return whether it did."""
    with monkeypatch.context() as patched:
        patched.setattr(files, "disk", disk)
        try:
            stream(*arguments, **options)
        except Crash:
            return True
    return False
