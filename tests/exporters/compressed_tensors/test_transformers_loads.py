"""transformers loads every format in a process that cannot import octavo, and computes what octavo simulates.

Weights are equal bit for bit once they are dequantized. In float32 the logits differ by the order of sums only (1e-6).
The library holds MX and NVFP4 weights in bfloat16, so that those are compared there: exactly where inputs are not
quantized or their scales are powers of two; elsewhere it divides inputs by their scales in bfloat16, which moves some
codes by one step, and rounds MXFP4's scales to the nearest power of two where Octavo takes the next one. Its dynamic
INT8 scales are amax / 127.5, Octavo's amax / 127, as those of serving engines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import octavo
from helpers.compressed_tensors_cases import CASES
from helpers.exporters_models import plain_model
from octavo.core.modules import quantized_layers

PROGRAM = Path(__file__).parents[2] / "helpers" / "transformers_consumer.py"
IDS = torch.arange(3, 27).reshape(2, 12)
EXACT, SUMS, DYNAMIC_INT8 = 0.0, 1e-6, 0.02
BF16 = {
    "NVFP4": 0.1, "NVFP4 weights": EXACT, "MXFP4": 0.02, "MXFP4 weights": EXACT, "MXFP4 FP8": 0.08, "MXFP6": EXACT,
    "MXFP8": EXACT, "MXFP8 weights": EXACT, "mixture": 0.1,
}  # fmt: skip
FLOAT32 = {"INT8 dynamic": DYNAMIC_INT8, "INT8 tensor dynamic": DYNAMIC_INT8, "W4A8": DYNAMIC_INT8}


@dataclass(frozen=True)
class Export:
    """A checkpoint, and what the finalized model computes."""

    folder: Path
    logits: Tensor
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    root = tmp_path_factory.mktemp("exports")
    found = {case: exported(case, root / case.replace(" ", "_")) for case in [*CASES, "tied"]}
    folders = [export.folder for export in found.values()]
    command = [sys.executable, "-I", PROGRAM, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return found


def exported(case: str, folder: Path) -> Export:
    dtype = torch.bfloat16 if case in BF16 else torch.float32
    config = CASES["FP8 channel" if case == "tied" else case][0]
    model = plain_model(dtype, tie_word_embeddings=case == "tied")
    model = octavo.quantize(model, config, [IDS], quiet=True)
    octavo.plugins().exporter("compressed_tensors").export(model, folder, quiet=True)
    with octavo.finalized(model, "compressed_tensors"), torch.no_grad():
        weights = {
            f"{name}.weight": layer.quantizers()["weight_quantizer"](layer.weight)
            for name, layer in quantized_layers(model)
            if layer.quantized_weights()
        }
        return Export(folder, model(IDS).logits, weights)


@pytest.mark.parametrize("case", [*CASES, "tied"])
def test_it_computes_the_same(case: str, exports: dict[str, Export]) -> None:
    export = exports[case]
    assert json.loads((export.folder / "consumed.json").read_text()) == {
        "missing_keys": [],
        "unexpected_keys": [],
    }
    consumed = load_file(export.folder / "consumed.safetensors")

    logits = consumed.pop("logits").float()
    unequal = [
        name
        for name, weight in export.weights.items()
        if not torch.equal(consumed[name].float(), weight.float())
    ]

    assert (len(export.weights), unequal) == (14, [])
    bound = BF16.get(case, FLOAT32.get(case, SUMS))
    assert (logits - export.logits.float()).norm() <= bound * export.logits.float().norm()


def test_octavo_cannot_be_imported_there() -> None:
    program = PROGRAM.read_text().partition("import torch")[0] + "\nimport octavo\n"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "octavo is not to be imported here" in done.stderr
