"""Train a model with its quantizers on, divided among processes by FSDP2, in a plain loop; then a checkpoint to serve.

Run: torchrun --nproc-per-node 2 examples/fsdp2_qat.py [--steps 60] [--bits 3] [--out DIR] [--json]
The bundled model in blocks of 32 weights, on processors here and on GPUs where there are any. Stopped by --stop-at STEP
and run again with the same --out, it goes on from its last checkpoint and exports the bytes of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

import octavo

DATA = Path(__file__).parent / "data"
MODEL = DATA / "stories260k"
LENGTH = 64
BATCH = 8  # of all processes


def main() -> None:
    options = parse_arguments()
    device = start()
    try:
        rows = run(options, device)
        if dist.get_rank() == 0:
            show(rows, options.json)
    finally:
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=3, help="of weights")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--stop-at", type=int, help="stop after this step, with a checkpoint")
    parser.add_argument(
        "--out", type=Path, default=Path("fsdp2_qat"), help="checkpoints and the exported model"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def start() -> torch.device:
    """Join the other processes, and return this one's device."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
        return torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("gloo")
    return torch.device("cpu")


def run(options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    test = octavo.text_batches(tokenizer, DATA / "test.jsonl", num_samples=32, sequence_length=128)
    model = AutoModelForCausalLM.from_pretrained(MODEL).to(device)
    rows = {"original": octavo.perplexity(model, test)}

    # Quantizers first: the scales that are learned have to be known to FSDP2, and both to the optimizer.
    training = octavo.QuantizedTraining(model, weights_of(options.bits), weight_scales="lsq", quiet=True)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    last = octavo.last_training(options.out / "checkpoints")
    done = 0 if last is None else octavo.load_training(last, model, optimizer)
    batches = samples(tokenizer, device)
    training.begin(
        done, [{"input_ids": batch} for batch in batches[dist.get_rank() :: dist.get_world_size()][:8]]
    )
    if done == 0:
        rows["rounded, not trained"] = octavo.perplexity(model, test)
    if not train(model, training, optimizer, batches, done, options):
        return rows
    training.end()
    exporter = octavo.plugins().exporter("compressed_tensors")
    exporter.export(model, options.out / "exported", tokenizer=tokenizer, overwrite=True, quiet=True)
    rows["trained with rounding"] = octavo.perplexity(model, test)
    served = octavo.load_quantized(options.out / "exported").to(device)
    rows["the exported checkpoint"] = octavo.perplexity(served, test)
    return rows


def weights_of(bits: int) -> dict[str, Any]:
    """Return a config of integer weights in blocks of 32, from ranges with the least squared error."""
    weights = {"num_bits": bits, "block_sizes": {-1: 32}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*weight_quantizer",
                "parent_class": "nn.Linear",
                "cfg": weights,
                "enable": True,
            },
            {"quantizer_name": "*lm_head*", "enable": False},
        ],
        "algorithm": "mse",
    }


def train(
    model: torch.nn.Module,
    training: octavo.QuantizedTraining,
    optimizer: torch.optim.Optimizer,
    batches: list[torch.Tensor],
    done: int,
    options: argparse.Namespace,
) -> bool:
    """Train from step `done` on; return whether the last step was reached."""
    model.train()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step in range(done, options.steps):
        tokens = batches[step % len(batches)][rank * BATCH // ranks : (rank + 1) * BATCH // ranks]
        training.before_step(step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        training.before_optimizer(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_step(step + 1)
        stops = step + 1 == options.stop_at
        if stops or (step + 1) % options.save_every == 0:
            folder = options.out / "checkpoints" / f"step-{step + 1}"
            octavo.save_training(folder, model, optimizer, step + 1)
        if stops:
            return False
    return True


def samples(tokenizer: Any, device: torch.device) -> list[torch.Tensor]:
    """Return the bundled texts, one after the other, as batches [BATCH, LENGTH]."""
    lines = (DATA / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [token for line in lines for token in tokenizer(json.loads(line)["text"])["input_ids"]]
    size = BATCH * LENGTH
    pieces = torch.tensor(ids[: len(ids) // size * size], device=device)
    return list(pieces.view(-1, BATCH, LENGTH))


def show(rows: dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'model':<24} perplexity")
    for name, perplexity in rows.items():
        print(f"{name:<24} {perplexity:.4f}")


if __name__ == "__main__":
    main()
