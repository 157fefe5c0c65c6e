"""What rounding costs a trained ResNet-20 on CIFAR-10 images, and what training with it brings back.

Run: python benchmarks/cnn_qat.py [--data DIR] [--formats int8,int4] [--epochs N] [--json]
     python benchmarks/cnn_qat.py --choose [--rates 5e-5,1e-4,2e-4] [--images N]

The networks, formats and the way of training are those of examples/cnn_qat.py. --choose trains on the first part of the
training images and prints the KL on the rest of them for each rate: test images are not looked at. Without it, each
network is trained on all training images at the example's rates (seed 0) and tested once. Reported: accuracy; the
images that only one of both networks gets right, with the probability of a split at least as uneven by chance
(McNemar's exact test); and the mean KL from the original's distributions over classes.
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

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import octavo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cnn import SHARED, divergence, logits
from cnn_qat import CALIBRATION, RATE, TASK, config, learn

HELD_OUT = 932  # training images, a fifth, for choosing
AIMS = {"int8 PTQ": 1.0, "int8 QAT": 0.3, "int4 QAT": 1.5}  # points of accuracy below the original, at most


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--data", type=Path, default=SHARED)
    arguments.add_argument("--formats", default="int8,int4")
    arguments.add_argument("--epochs", type=int, default=2)
    arguments.add_argument("--images", type=int, help="use so many training and test images only")
    arguments.add_argument("--choose", action="store_true")
    arguments.add_argument("--rates", default="5e-5,1e-4,2e-4")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    base = TASK.load_model(options.data)
    images = TASK.load_images(options.data, "train")[0][: options.images]
    results = choices(base, images, options) if options.choose else tested(base, images, options)
    rows = []
    for row in results:
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=2)) if options.json else print_table(rows)


def choices(base: nn.Module, images: Tensor, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the KL on held-out training images for each format and rate."""
    held = min(HELD_OUT, len(images) // 5)
    seen, judged = images[:-held], images[-held:]
    expected = logits(base, judged)
    for name in options.formats.split(","):
        model = quantized(base, name, seen)
        yield {"network": f"{name} PTQ", "rate": None, "kl": divergence(expected, logits(model, judged))}
        for rate in map(float, options.rates.split(",")):
            learned = copy.deepcopy(model)
            learn(learned, seen, options.epochs, rate)
            kl = divergence(expected, logits(learned, judged))
            yield {"network": f"{name} QAT", "rate": rate, "kl": kl}


def tested(base: nn.Module, images: Tensor, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the row of each network on the test images."""
    shown, labels = (part[: options.images] for part in TASK.load_images(options.data, "test"))
    expected = logits(base, shown)
    for name in options.formats.split(","):
        model = quantized(base, name, images)
        yield compared(f"{name} PTQ", expected, logits(model, shown), labels)
        learn(model, images, options.epochs, RATE[name])
        octavo.fold_batch_norm(model, images[:2])
        yield compared(f"{name} QAT", expected, logits(model, shown), labels)


def quantized(base: nn.Module, name: str, images: Tensor) -> nn.Module:
    return octavo.quantize(copy.deepcopy(base), config(name), images[:CALIBRATION].split(64), quiet=True)


def compared(name: str, expected: Tensor, found: Tensor, labels: Tensor) -> dict[str, Any]:
    right, right_quantized = expected.argmax(1) == labels, found.argmax(1) == labels
    lost, gained = int((right & ~right_quantized).sum()), int((~right & right_quantized).sum())
    return {
        "network": name,
        "images": len(labels),
        "top1_float": float(right.double().mean()),
        "top1": float(right_quantized.double().mean()),
        "points_below": 100 * (lost - gained) / len(labels),
        "lost": lost,
        "gained": gained,
        "p": mcnemar(lost, gained),
        "kl": divergence(expected, found),
        "aim": AIMS.get(name),
    }


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided probability of so uneven a split of `lost + gained` images if either were as likely."""
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1)) / 2**total
    return min(1.0, 2 * tail)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
