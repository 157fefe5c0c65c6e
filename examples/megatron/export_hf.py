"""Quantize an imported model inside Megatron-core and write it as a Hugging Face checkpoint that engines load.

Run: torchrun --nproc-per-node 4 examples/megatron/export_hf.py --tp 2 --pp 2 --format fp8 --out OUT
Then the same is done to the Hugging Face model in one process, and every tensor of both checkpoints is compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import FORMATS, arguments, calibration, joined, windows
from safetensors.torch import load_file
from torch import Tensor

import octavo
from octavo.adapters.megatron_core.conversion import export_huggingface, import_huggingface


def main() -> None:
    options = arguments(__doc__, out="")
    with joined(options.tp, options.pp) as rank:
        batches = windows(options.model, "calibration.jsonl", 4)
        model = import_huggingface(options.model).eval()
        octavo.quantize(model, FORMATS[options.format], calibration(batches), quiet=True)
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(options.out or temporary)
            report = export_huggingface(model, options.model, out / "megatron", overwrite=True)
            if rank == 0:
                print(f"{report.num_tensors} tensors, {report.num_bytes / 1e6:.2f} MB")
                export_from_transformers(options.model, options.format, batches, out / "transformers")
                print(comparison(out / "megatron", out / "transformers"))


def export_from_transformers(model_dir: Path, name: str, batches: list[Tensor], out: Path) -> None:
    """Quantize the Hugging Face model with the same data, and export it."""
    model = octavo.plugins().load_model(model_dir, None, False, quiet=True)
    octavo.quantize(model, FORMATS[name], batches, quiet=True)
    octavo.export_hf_checkpoint(model, export_dir=out, overwrite=True)


def comparison(ours: Path, theirs: Path) -> str:
    """Say how two checkpoints of one shard differ."""
    name = "model.safetensors"
    if (ours / name).read_bytes() == (theirs / name).read_bytes():
        return "the same bytes as from transformers"
    found, expected = load_file(ours / name), load_file(theirs / name)
    same = [key for key in expected if key in found and as_bytes(found[key]) == as_bytes(expected[key])]
    scales = [key for key in expected if key.endswith("input_scale")]
    worst = max(float((found[key] / expected[key] - 1).abs()) for key in scales)
    others = [key for key in found.keys() | expected.keys() if key not in same and key not in scales]
    return (
        f"{len(same)} of {len(expected)} tensors have the same bytes as from transformers; scales of inputs differ by "
        f"{worst:.1e} at most, and {len(others)} others differ"
    )


def as_bytes(tensor: Tensor) -> tuple[object, ...]:
    """Return what two equal tensors have in common."""
    return tensor.dtype, tensor.shape, tensor.flatten().view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    main()
