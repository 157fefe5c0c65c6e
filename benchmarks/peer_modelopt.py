"""ModelOpt's side of ptq_cost.py; run by the Python of an environment that has nvidia-modelopt and transformers."""

from __future__ import annotations

import argparse

import torch
import workload
from torch import Tensor, nn


def main() -> None:
    import modelopt
    import modelopt.torch.quantization as mtq

    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = workload.CASES[options.case]
    config = case.config(getattr(mtq, case.preset))

    def quantize(model: nn.Module, batches: list[Tensor]) -> None:
        mtq.quantize(model, config, lambda target: workload.forward_loop(target, batches))

    # Its FP4 formats do not run on a CPU, so that quantized forward passes are left out.
    workload.measure(
        f"modelopt {modelopt.__version__}", options.case, quantize, options.repeats, forward=False
    )


if __name__ == "__main__":
    main()
