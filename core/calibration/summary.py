"""`print_quant_summary`: every quantizer of a model, one line each."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from octavo.core.modules import tensor_quantizers

SUMMARY_NAME = ".quant_summary.txt"


def print_quant_summary(model: nn.Module, output_dir: str | Path | None = None) -> None:
    """Print every quantizer of `model` with its format and calibrated state, and how many there are.

    Args:
        model: Any model.
        output_dir: Write the lines to `.quant_summary.txt` in this folder instead; it is made where missing.
    """
    lines = [f"{name:80} {quantizer}" for name, quantizer in tensor_quantizers(model)]
    text = "\n".join([*lines, f"{len(lines)} TensorQuantizers found in model"]) + "\n"
    if output_dir is None:
        sys.stdout.write(text)
        return
    path = Path(output_dir) / SUMMARY_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path}\n")
