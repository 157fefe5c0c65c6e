"""Memory and time of converting a checkpoint into another dialect; no model and no network are needed.

Run: python benchmarks/convert_memory.py [LAYERS]

A random FP8 Llama of width 2048 in ModelOpt's dialect is converted to compressed-tensors, once with scales that this
holds exactly, and once with scales that make it round every code again; each in a process of its own. The exact one is
converted back and must be what it was, byte for byte. Printed are seconds, and the most private memory (RssAnon: pages
of files that are read are the system's to drop) that a process held above what it held before. Shards are one block.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HIDDEN, INTER = 2048, 5632
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTER, HIDDEN),
    "mlp.up_proj": (INTER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTER),
}
BLOCK = sum(rows * columns for rows, columns in SHAPES.values())  # bytes of FP8


def main(layers: int) -> None:
    print(f"{layers} blocks of {BLOCK / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded, back = (Path(folder) / name for name in ("exact", "rounded", "back"))
        for source, is_exact in ((exact, True), (rounded, False)):
            write(source, layers, is_exact)
            measure(source.name, source, source.with_suffix(".ct"), "compressed_tensors")
        measure("exact, back", exact.with_suffix(".ct"), back, "unified_hf")
        check_same(exact, back)


def write(directory: Path, layers: int, is_exact: bool) -> None:
    """Write a checkpoint in ModelOpt's dialect, whose scales are 1, or of each layer its own."""
    import torch

    from octavo.core.model.shards import SafetensorsWriter

    directory.mkdir()
    writer, random = SafetensorsWriter(directory, BLOCK), torch.Generator().manual_seed(0)
    for layer in range(layers):
        for number, (name, shape) in enumerate(SHAPES.items()):
            module = f"model.layers.{layer}.{name}"
            codes = torch.randint(0, 0x70, shape, generator=random, dtype=torch.uint8)
            writer.add(f"{module}.weight", codes.view(torch.float8_e4m3fn))
            writer.add(f"{module}.weight_scale", torch.tensor(1.0 if is_exact else 1 + 0.17 * number))
            writer.add(f"{module}.input_scale", torch.tensor(0.5))
    writer.finish()
    described = {"quant_method": "modelopt", "quant_algo": "FP8"}
    config = {"dtype": "bfloat16", "quantization_config": described}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(what: str, source: Path, out: Path, dialect: str) -> None:
    """Convert in a process of its own, and print what that took."""
    command = [sys.executable, __file__, "--measured", str(source), str(out), dialect]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    print(
        f"{what} -> {dialect}: {found['seconds']:.1f} s, {found['bytes'] / 1e6:.0f} MB "
        f"({found['bytes'] / BLOCK:.2f} blocks), {found['share']:.1%} of the codes changed"
    )


def measured(source: str, out: str, dialect: str) -> None:
    """Convert, and print seconds, bytes and the share of codes that changed."""
    import octavo

    octavo.convert_checkpoint  # noqa: B018 (what is imported is no memory of the conversion)
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    report = octavo.convert_checkpoint(
        source, out, dialect=dialect, lossy=True, quiet=True, max_shard_bytes=BLOCK
    )
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": most - before, "share": report.share_of_codes}))


def anonymous_bytes() -> int:
    """Return the private memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def check_same(one: Path, other: Path) -> None:
    """Check that two checkpoints have the same tensors, bit for bit."""
    import torch

    from octavo.core.model.shard_reader import ShardReader

    first, second = ShardReader(one), ShardReader(other)
    assert first.names() == second.names()
    for name in first.names():
        tensors = [reader.tensor(name).flatten().view(torch.uint8) for reader in (first, second)]
        assert torch.equal(*tensors), name


if __name__ == "__main__":
    if "--measured" in sys.argv:
        measured(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
