"""Train a convolutional network with INT8 or INT4 weights until it is as good as before; test it once.

Run: python examples/cnn_qat.py [DATA] [--epochs N] [--formats int8,int4] [--json]

DATA (default: ../shared/data beside this repository) holds `cifar10-resnet20/model.safetensors` and `cifar10-images`
with `train.npz` and `test.npz`. The quantized network learns from the original's logits, on training images; each
channel of a weight has one scale, so that batch normalization is folded away afterwards without changing a code.
Test images are looked at once, and every image on which both networks differ is counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import octavo

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH leaves it out
from cnn import SHARED, TASKS, logits

TASK = TASKS["resnet20"]
CALIBRATION, BATCH = 256, 64
WEIGHT_BITS = {"int8": 8, "int4": 4}
RATE = {"int8": 5e-5, "int4": 2e-4}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path, nargs="?", default=SHARED)
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--formats", default="int8,int4")
    arguments.add_argument("--images", type=int, help="train and test with so many only, for a quick look")
    arguments.add_argument("--json", action="store_true", help="print results as JSON")
    options = arguments.parse_args()
    rows = [row for name in options.formats.split(",") for row in run(name, options)]
    print(json.dumps(rows, indent=2) if options.json else "\n".join(map(line, rows)))


def run(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the quantized network before and after training, each beside the original."""
    base = TASK.load_model(options.data)
    train, _ = TASK.load_images(options.data, "train")
    images, labels = TASK.load_images(options.data, "test")
    train, images, labels = (part[: options.images] for part in (train, images, labels))
    model = octavo.quantize(copy.deepcopy(base), config(name), train[:CALIBRATION].split(64), quiet=True)
    expected = logits(base, images).argmax(1)
    yield compared(f"{name} PTQ", model, expected, images, labels)
    learn(model, train, options.epochs, RATE[name])
    folded = octavo.fold_batch_norm(model, train[:2])
    yield compared(f"{name} QAT", model, expected, images, labels) | {"folded": len(folded)}


def config(name: str) -> dict[str, Any]:
    """INT8 inputs by tensor, weights by output channel; the first and the last layer stay INT8."""
    weights = {"num_bits": WEIGHT_BITS[name], "axis": 0}
    rules: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None, "calibrator": "mse"}},
    ]
    rules += [
        {"quantizer_name": f"{layer}.weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}}
        for layer in ("conv1", "linear")
    ]
    return {"quant_cfg": rules, "algorithm": "mse"}


def learn(model: nn.Module, images: Tensor, epochs: int, rate: float) -> None:
    """Train with the original network as teacher; normalization keeps its statistics, as it will be folded away."""
    distillation = octavo.distill(model)
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            distillation.loss(model(augmented(images[index], generator))).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    octavo.export_student(model)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, and shift all by up to four pixels."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    down, right = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return torch.roll(nn.functional.pad(images, (4, 4, 4, 4)), (down, right), (2, 3))[..., 4:-4, 4:-4]


def compared(name: str, model: nn.Module, expected: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return how many test images each network alone gets right."""
    found = logits(model, images).argmax(1)
    right, right_quantized = expected == labels, found == labels
    return {
        "network": name,
        "images": len(labels),
        "top1_float": float(right.double().mean()),
        "top1": float(right_quantized.double().mean()),
        "lost": int((right & ~right_quantized).sum()),
        "gained": int((~right & right_quantized).sum()),
    }


def line(row: dict[str, Any]) -> str:
    points = 100 * (row["top1_float"] - row["top1"])
    return (
        f"{row['network']:10} {row['images']} test images: float {row['top1_float']:.2%}, quantized {row['top1']:.2%} "
        f"({points:+.2f} points below); right alone: float on {row['lost']}, quantized on {row['gained']}"
    )


if __name__ == "__main__":
    main()
