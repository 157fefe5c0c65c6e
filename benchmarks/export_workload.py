"""The model of export_speed.py, and how one case is measured; imports nothing of Octavo, so that peers use it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, INTER, VOCABULARY = 2048, 5632, 8192
CASES = {
    "FP8": "FP8_DEFAULT_CFG",
    "INT8": "INT8_DEFAULT_CFG",
    "INT4 g128": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "NVFP4": "NVFP4_DEFAULT_CFG",
}
Seconds = dict[str, float]


def write_model(folder: Path, num_layers: int) -> None:
    """Write a random bf16 Llama: hidden 2048, 16 heads (4 for keys and values), feed-forward 5632."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTER,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def read_model(folder: Path) -> nn.Module:
    """Read it into memory of its own, as training leaves it: no page of the file stands for a weight."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def data() -> list[Tensor]:
    """Two samples of 16 random tokens: static scales, at little cost."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (1, 16), generator=generator) for _ in range(2)]


@torch.no_grad()
def forward_loop(model: nn.Module) -> None:
    """Run the data through a model."""
    for ids in data():
        model(ids)


def measure(
    tool: str,
    case: str,
    folder: Path,
    repeats: int,
    quantize: Callable[[nn.Module], object],
    export: Callable[[nn.Module, Path], object],
) -> None:
    """Print a row as JSON: seconds of `export` of fresh models, and before each of `save_file` of its plain weights.

    These are saved twice: as they are, and flushed, read back and hashed as well, as an export's are. The first turn
    is not counted: it pays for imports, compilers, and memory that the system hands out anew. Everything is written
    to the folder that `folder` is in. Megabytes are the most private memory (RssAnon) above that before an export.
    """
    place = folder.with_name("written")
    saved, checked, exported, megabytes = [], [], [], []
    for _ in range(repeats + 1):
        model = read_model(folder)
        plain = {name: parameter.data for name, parameter in model.named_parameters()}
        num_bytes = sum(tensor.nbytes for tensor in plain.values())
        saved.append(timed(partial(_save, plain, place), place))
        checked.append(timed(partial(_save_checked, plain, place), place))
        quantize(model)
        del plain
        with PrivateMemory() as memory:
            exported.append(timed(partial(export, model, place), place))
        megabytes.append(memory.megabytes)
    row: dict[str, Any] = {"tool": tool, "case": case, "repeats": repeats, "bytes": num_bytes}
    row |= {f"save_{kind}": value for kind, value in _medians(saved[1:]).items()}
    row |= {f"checked_{kind}": value for kind, value in _medians(checked[1:]).items()}
    row |= {f"export_{kind}": value for kind, value in _medians(exported[1:]).items()}
    print(json.dumps(row | {"megabytes": max(megabytes[1:])}))


def timed(work: Callable[[], object], place: Path) -> Seconds:
    """Return what writing to `place` costs, which is removed then.

    Returns:
        `cpu` and `wall` seconds of `work`, and `flushed`: wall seconds until the files are on the disk.
    """
    os.sync()  # what was written before is no part of it
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    for path in [place] if place.is_file() else sorted(place.iterdir()):
        flush(path)
    seconds["flushed"] = time.perf_counter() - wall
    if place.is_file():
        place.unlink()
    else:
        shutil.rmtree(place)
    return seconds


def flush(path: Path) -> None:
    """Write what the system still holds of a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PrivateMemory:
    """A context that finds the most private memory of this process while it lasts.

    Attributes:
        megabytes: RssAnon above that at the start; pages of files that are read are the system's to drop.
    """

    def __enter__(self) -> PrivateMemory:
        self._start, self.megabytes = _private_megabytes(), 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.01):
            self.megabytes = max(self.megabytes, _private_megabytes() - self._start)


def _private_megabytes() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _save_checked(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import safe_open

    _save(tensors, path)
    flush(path)
    with safe_open(path, "pt") as file:
        for name in tensors:
            hashlib.sha256(file.get_tensor(name).flatten().view(torch.uint8).numpy().data).hexdigest()


def _medians(runs: list[Seconds]) -> Seconds:
    return {kind: statistics.median(run[kind] for run in runs) for kind in runs[0]}
