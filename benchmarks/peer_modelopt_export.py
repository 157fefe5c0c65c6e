"""ModelOpt's side of export_speed.py; run by the Python of an environment that has nvidia-modelopt and transformers."""

from __future__ import annotations

import argparse
from pathlib import Path

import export_workload as workload
import torch
from torch import nn


def main() -> None:
    import modelopt
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = getattr(mtq, workload.CASES[options.case])

    def quantize(model: nn.Module) -> None:
        mtq.quantize(model, config, workload.forward_loop)

    def export(model: nn.Module, folder: Path) -> None:
        export_hf_checkpoint(model, export_dir=folder)

    tool = f"modelopt {modelopt.__version__}"
    workload.measure(tool, options.case, options.folder, options.repeats, quantize, export)


if __name__ == "__main__":
    main()
