"""Quantize convolutional networks to INT8: choose the calibrator on training images, report on test images.

Run: python examples/cnn.py [DATA] [--json]

DATA (default: ../shared/data beside this repository) holds `cifar10-resnet20/model.safetensors` and
`mnist-cnn/model.safetensors`, and `cifar10-images` and `mnist-images` with `train.npz` and `test.npz` (`images` uint8,
`labels` int64). The calibrator is chosen by how far logits of images that neither calibrated nor test the model
diverge from the unquantized network's; test images are looked at once, with the one chosen.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu

import octavo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CALIBRATION, VALIDATION = 256, 512  # training images; the two do not overlap
CALIBRATORS: dict[str, Any] = {
    "max": "max",
    "entropy": "entropy",
    "percentile 99.99": {"method": "percentile", "percentile": 99.99},
    "percentile 99.9": {"method": "percentile", "percentile": 99.9},
    "mse": "mse",
}


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters, which subsamples and pads channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.padding = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, out_channels, height / stride, width / stride]."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return relu(y + pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet20(nn.Module):
    """The 20-layer CIFAR-10 network of He et al., arXiv:1512.03385, for images [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, 10]."""
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(adaptive_avg_pool2d(x, 1).flatten(1))


class MnistNet(nn.Module):
    """Three convolutions and two linear layers, for images [n, 1, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 24, 3)
        self.norm1, self.fc1 = nn.BatchNorm2d(24), nn.Linear(24 * 22 * 22, 32)
        self.fc2, self.norm2 = nn.Linear(32, 10), nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, 10]."""
        x = self.norm1(relu(self.conv3(relu(self.conv2(relu(self.conv1(x)))))))
        return self.norm2(self.fc2(relu(self.fc1(x.flatten(1)))))


@dataclass(frozen=True)
class Task:
    """A trained network, where its files are below the data folder, and how its images are normalized."""

    make: Callable[[], nn.Module]
    model: str
    images: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def load_model(self, data: Path) -> nn.Module:
        """Return the trained network in eval mode."""
        model = self.make()
        model.load_state_dict(load_file(existing(data / self.model / "model.safetensors")))
        return model.eval()

    def load_images(self, data: Path, split: str) -> tuple[Tensor, Tensor]:
        """Return normalized images, fp32 [n, channels, height, width], and labels, int64 [n]."""
        arrays = np.load(existing(data / self.images / f"{split}.npz"))
        images = torch.from_numpy(arrays["images"]).reshape(
            len(arrays["images"]), len(self.mean), *arrays["images"].shape[-2:]
        )
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std, torch.from_numpy(arrays["labels"])


TASKS = {
    "resnet20": Task(
        ResNet20, "cifar10-resnet20", "cifar10-images", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "mnist": Task(MnistNet, "mnist-cnn", "mnist-images", (0.1307,), (0.3081,)),
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path, nargs="?", default=SHARED)
    arguments.add_argument("--json", action="store_true", help="print results as JSON")
    options = arguments.parse_args()
    results = [run(name, task, options.data) for name, task in TASKS.items()]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print("\n".join(report(result)))


def run(name: str, task: Task, data: Path) -> dict[str, Any]:
    """Quantize one network with each calibrator and test the one whose validation logits diverge least."""
    base = task.load_model(data)
    train, _ = task.load_images(data, "train")
    calibration, validation = train[:CALIBRATION], train[CALIBRATION : CALIBRATION + VALIDATION]
    models = {label: quantized(base, calibrator, calibration) for label, calibrator in CALIBRATORS.items()}
    expected = logits(base, validation)
    divergences = {label: divergence(expected, logits(model, validation)) for label, model in models.items()}
    chosen = min(divergences, key=divergences.__getitem__)

    images, labels = task.load_images(data, "test")
    right, right_quantized = (logits(model, images).argmax(1) == labels for model in (base, models[chosen]))
    return {
        "network": name,
        "layers": sum(isinstance(layer, octavo.QuantModule) for layer in models[chosen].modules()),
        "divergence": divergences,
        "chosen": chosen,
        "images": len(labels),
        "top1": float(right.double().mean()),
        "top1_int8": float(right_quantized.double().mean()),
        "lost": int((right & ~right_quantized).sum()),
        "gained": int((~right & right_quantized).sum()),
    }


def quantized(base: nn.Module, calibrator: Any, images: Tensor) -> nn.Module:
    """Return an INT8 copy of a network: weights by channel, inputs of its layers by tensor."""
    config = copy.deepcopy(octavo.INT8_DEFAULT_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*input_quantizer":
            entry["cfg"]["calibrator"] = calibrator
    return octavo.quantize(copy.deepcopy(base), config, images.split(64), quiet=True)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(128)])


def divergence(expected: Tensor, found: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence from the expected distributions over classes, in nats."""
    log_expected, log_found = expected.double().log_softmax(1), found.double().log_softmax(1)
    return float((log_expected.exp() * (log_expected - log_found)).sum(1).mean())


def report(result: dict[str, Any]) -> list[str]:
    rows = [
        f"  {'->' if label == result['chosen'] else '  '} {label:18} {value:.2e} nats"
        for label, value in result["divergence"].items()
    ]
    return [
        f"{result['network']}: divergence on {VALIDATION} validation images",
        *rows,
        f"  {result['images']} test images: float {result['top1']:.2%}, INT8 {result['top1_int8']:.2%}; "
        f"only float is right on {result['lost']}, only INT8 on {result['gained']}",
    ]


def existing(path: Path) -> Path:
    if not path.is_file():
        sys.exit(f"{path} is not there: give the folder that has it as the argument DATA (see --help)")
    return path


if __name__ == "__main__":
    main()
