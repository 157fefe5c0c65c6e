"""Memory of writing a Megatron-core model, which two ranks have in two stages, as a Hugging Face checkpoint.

Run: torchrun --nproc-per-node 2 benchmarks/megatron_export_memory.py [BLOCKS] [FORMAT]

A random Llama is imported, quantized (NVFP4 weights, which need no data) or left as it is (`plain`), and exported in
shards of one block. Printed is, for each rank, the most private memory (RssAnon: pages of files that are read are the
system's to drop) that it had above what it had before, in blocks of the model. Beside two blocks a rank may hold one
shard.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "megatron"))

from common import joined  # noqa: E402 (of the examples)
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import octavo  # noqa: E402
from octavo.adapters.megatron_core.conversion import export_huggingface, import_huggingface  # noqa: E402


def main(blocks: int = 6, name: str = "nvfp4") -> None:
    with joined(1, 2) as rank, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if rank == 0 else "")
        shared = [str(folder)]
        dist.broadcast_object_list(shared, 0)
        folder = Path(shared[0])
        if rank == 0:
            make(folder / "model", blocks)
        dist.barrier()
        model = import_huggingface(folder / "model").eval()
        if name == "nvfp4":
            octavo.quantize(model, octavo.W4A16_NVFP4_CFG, quiet=True)
        block = sum(p.nbytes for p in model.decoder.layers[0].parameters())
        before, watch = private_bytes(), Watch()
        with watch:
            export_huggingface(model, folder / "model", folder / "out", max_shard_bytes=block)
        said = [torch.zeros(1) for _ in range(dist.get_world_size())]
        dist.all_gather(said, torch.tensor([(watch.most - before) / block]))
        if rank == 0:
            own = sum(p.nbytes for p in model.parameters()) / block
            print(f"{name}, {blocks} blocks of {block / 1e6:.1f} MB, {own:.1f} of them on rank 0")
            print(
                "most above that, in blocks: "
                + ", ".join(f"rank {n} {float(one):.2f}" for n, one in enumerate(said))
            )
        dist.barrier()


def make(folder: Path, blocks: int) -> None:
    """Write a random Llama: fp32 blocks of 101 MB, and a small vocabulary."""
    config = LlamaConfig(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=blocks,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")


class Watch:
    """Notes the most private memory while it is open."""

    def __enter__(self) -> None:
        self.most, self._open = private_bytes(), True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()

    def _look(self) -> None:
        while self._open:
            self.most = max(self.most, private_bytes())
            time.sleep(0.002)


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
