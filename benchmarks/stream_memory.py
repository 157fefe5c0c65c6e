"""Memory of `octavo quantize --stream`: what it holds over its imports, for models of more and more blocks.

Run: python benchmarks/stream_memory.py [--blocks 8,16,32,64] [--hidden N] [--presets NAMES] [--tokens N] [--folder DIR]

The checkpoints are Llama-shaped with random bf16 weights, written shard by shard by this script. Each run has a process
of its own, which samples the memory that no file stands behind (RssAnon) every 5 ms; what it held after importing
everything, before any checkpoint was opened, is taken off. M is the larger of a block and the largest tensor, in the
source's bytes. One run with few blocks is held, byte for byte, against quantizing in memory first. Peaks are to be flat
within 5 % over the numbers of blocks, and at most 2.5 M and the budget of activations, which is 0 here: all of them are
read from disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

VOCABULARY = 8192


def main() -> None:
    options = parse_arguments()
    if options.run is not None:
        run(Path(options.run), options.presets, options.tokens)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as directory:
        source = Path(directory, "source")
        write_checkpoint(source, 2, 256)
        for preset in options.presets.split(","):
            check(source, preset)
        shutil.rmtree(source)
        for blocks in map(int, options.blocks.split(",")):
            largest = write_checkpoint(source, blocks, options.hidden)
            for preset in options.presets.split(","):
                found = measured(source, preset, options.tokens)
                rows.append({"preset": preset, "blocks": blocks, "M": largest, **found})
            shutil.rmtree(source)
    print_rows(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", default="8,16,32,64")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--presets", default="FP8_DEFAULT_CFG,W4A16_NVFP4_CFG")
    parser.add_argument("--tokens", type=int, default=512, help="of calibration data, in batches of 128")
    parser.add_argument("--folder", help="where checkpoints are written and removed")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(folder: Path, blocks: int, hidden: int) -> int:
    """Write a Llama's checkpoint, a shard for each block; return the bytes of a block, or of a larger tensor."""
    folder.mkdir()
    wide, narrow = hidden * 11 // 4, hidden // 4
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": blocks, "num_attention_heads": hidden // 64, "num_key_value_heads": narrow // 64,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator, index = torch.Generator().manual_seed(0), {}

    def shard(name: str, shapes: dict[str, tuple[int, ...]]) -> int:
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.randn(shape, dtype=torch.bfloat16, generator=generator).mul_(0.02)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        return sum(tensor.nbytes for tensor in tensors.values())

    sizes = [
        shard("model-embed.safetensors", {"model.embed_tokens.weight": (VOCABULARY, hidden)}),
        shard(
            "model-head.safetensors", {"lm_head.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
        ),
    ]
    for number in range(blocks):
        at = f"model.layers.{number}"
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (narrow, hidden),
            f"{at}.self_attn.v_proj.weight": (narrow, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (wide, hidden),
            f"{at}.mlp.up_proj.weight": (wide, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, wide),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
        sizes.append(shard(f"model-{number:03d}.safetensors", shapes))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return max(sizes)


def batches(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (1, 128), generator=generator) for _ in range(tokens // 128)]


def check(source: Path, preset: str) -> None:
    """Hold a streamed checkpoint against one that was quantized in memory."""
    import octavo
    from octavo.core.plugins import plugins

    folders = [source.with_name("streamed"), source.with_name("memory")]
    octavo.quantize_checkpoint(source, preset, batches(256), folders[0], quiet=True)
    model = plugins().load_model(source, None, False, True)
    octavo.quantize(model, preset, batches(256), quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=folders[1], quiet=True)
    digests = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in folders]
    if digests[0] != digests[1]:
        sys.exit(f"{preset}: streamed {digests[0]} differs from memory {digests[1]}")
    for folder in folders:
        shutil.rmtree(folder)


def measured(source: Path, preset: str, tokens: int) -> dict[str, Any]:
    """Run in a process of its own."""
    command = [sys.executable, __file__, "--run", str(source), "--presets", preset, "--tokens", str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(source: Path, preset: str, tokens: int) -> None:
    """Quantize, and print the peak over the imports, and what it took, as JSON."""
    import transformers.models.llama.modeling_llama  # noqa: F401  # what the run imports anyway

    import octavo
    import octavo.core.streaming.quantize_checkpoint
    from octavo.core.streaming.progress import anonymous_bytes

    torch.set_num_threads(1)
    before, peak, over = anonymous_bytes(), 0, threading.Event()
    if before is None:
        sys.exit("not measured: this system does not say how much memory no file stands behind (Linux does)")

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, anonymous_bytes() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, start = source.with_name("out"), time.process_time()
    octavo.quantize_checkpoint(source, preset, batches(tokens), out, quiet=True, activation_budget=0)
    seconds = time.process_time() - start
    over.set()
    watcher.join()
    shutil.rmtree(out)
    print(json.dumps({"peak": peak - before, "cpu_seconds": seconds}))


def print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("preset", "blocks", "M, MB", "peak, MB", "peak / M", "to the fewest", "CPU s")
    first: dict[str, float] = {}
    for row in rows:
        flat = row["peak"] / first.setdefault(row["preset"], row["peak"])
        table.add_row(
            row["preset"], str(row["blocks"]), f"{row['M'] / 1e6:.0f}", f"{row['peak'] / 1e6:.0f}",
            f"{row['peak'] / row['M']:.2f}", f"{flat:.3f}", f"{row['cpu_seconds']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
