"""Memory and time of dividing a TensorRT-LLM checkpoint over other ranks; no model and no network are needed.

Run: python benchmarks/reshard_memory.py [LAYERS]

A random FP8 Llama of width 2048 is written on one rank, divided over tp 4, pp 2 and put together again, each in a
process of its own; the last file must be the first, byte for byte. Printed are seconds, and the most private memory
(RssAnon: pages of files that are read are the system's to drop) that a process held above what it held at its start.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HIDDEN, INTER, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 8, 32000


def main(layers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, many, back = (Path(folder) / name for name in ("one", "many", "back"))
        size, largest = write(one, layers)
        print(f"checkpoint {size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
        for what, arguments in {
            "tp1 pp1 -> tp4 pp2": (one, many, 4, 2),
            "tp4 pp2 -> tp1 pp1": (many, back, 1, 1),
        }.items():
            command = [sys.executable, __file__, "--measured", *map(str, arguments)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"{what}: {found['seconds']:.1f} s, {found['bytes'] / 1e6:.0f} MB")
        first, last = (digest(path / "rank0.safetensors") for path in (one, back))
        assert first == last, "the bytes are not the same"


def write(directory: Path, layers: int) -> tuple[int, int]:
    """Write the checkpoint; return its bytes and those of its largest tensor."""
    from octavo.exporters.tensorrt_llm.layout import Layout
    from octavo.exporters.tensorrt_llm.rank_files import RankFiles

    directory.mkdir()
    config = {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "vocab_size": VOCAB,
        "use_parallel_embedding": True,
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None},
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    files, largest = RankFiles(directory, Layout(1, 1)), 0
    for name, tensor in tensors(layers):
        files.add(0, name, tensor)
        largest = max(largest, tensor.nbytes)
    files.finish()
    return (directory / "rank0.safetensors").stat().st_size, largest


def tensors(layers: int) -> Iterator[tuple[str, object]]:
    import torch

    random = torch.Generator().manual_seed(0)
    head = HIDDEN // HEADS
    shapes = {
        "attention.qkv": ((HEADS + 2 * KV_HEADS) * head, HIDDEN),
        "attention.dense": (HIDDEN, HIDDEN),
        "mlp.fc": (INTER, HIDDEN),
        "mlp.gate": (INTER, HIDDEN),
        "mlp.proj": (HIDDEN, INTER),
    }
    for name in ("transformer.vocab_embedding", "lm_head"):
        yield f"{name}.weight", torch.randn(VOCAB, HIDDEN, generator=random).bfloat16()
    for layer in range(layers):
        for name, shape in shapes.items():
            codes = torch.randint(0, 126, shape, generator=random, dtype=torch.uint8)
            yield f"transformer.layers.{layer}.{name}.weight", codes.view(torch.float8_e4m3fn)
            yield f"transformer.layers.{layer}.{name}.weights_scaling_factor", torch.rand(1, generator=random)
            yield (
                f"transformer.layers.{layer}.{name}.activation_scaling_factor",
                torch.rand(1, generator=random),
            )


def measured(source: Path, target: Path, tp: int, pp: int) -> None:
    """Print {seconds, bytes} of resharding, as JSON."""
    from octavo.exporters.tensorrt_llm.reshard import reshard_tensorrt_llm

    begin, most, done = private_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    reshard_tensorrt_llm(source, target, tp, pp)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": most - begin}))


def private_bytes() -> int:
    """Return the private memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        measured(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
