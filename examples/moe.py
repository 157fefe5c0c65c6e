"""Quantize a mixture of experts to NVFP4: tokens per expert, the checkpoint, and the model read back from it.

Run: python examples/moe.py [OUT_DIR]
The model is a tiny Qwen3-MoE with random weights; its stacked experts have scales of their own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import octavo
from octavo.core.calibration.experts import tokens_per_expert

CONFIG = Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=64,
    moe_intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=2,
)


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(CONFIG).eval()
    batches = [torch.randint(0, CONFIG.vocab_size, (4, 32)) for _ in range(4)]

    octavo.quantize(model, octavo.NVFP4_DEFAULT_CFG, batches)
    for name, counts in tokens_per_expert(model).items():
        print(f"{name}: tokens per expert {counts.tolist()}")

    report = octavo.export_hf_checkpoint(model, export_dir=out)
    with octavo.finalized(model, "unified_hf"):  # with the rounding of the checkpoint's dialect
        expected = model(batches[0]).logits
    equal = torch.equal(octavo.load_quantized(out)(batches[0]).logits, expected)
    print(f"{report.num_tensors} tensors, {report.num_bytes / 1e6:.2f} MB; read back equal: {equal}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "nvfp4")
