"""torchao's side of qat_step.py, run by a Python that has it: prints a row of JSON last."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torchao
import training_step
import workload
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.granularity import PerTensor
from torchao.quantization.qat import Float8FakeQuantizeConfig, IntxFakeQuantizeConfig, QATConfig


def config_of(case: str) -> Any:
    """Return what stands for a case."""
    if case == "FP8 W8A8":
        fp8 = Float8FakeQuantizeConfig(torch.float8_e4m3fn, PerTensor())
        return QATConfig(activation_config=fp8, weight_config=fp8, step="prepare")
    if case == "INT4 g32 weight":
        return QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare")
    if case == "NVFP4 W4A4":
        from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

        return QATConfig(NVFP4DynamicActivationNVFP4WeightConfig(), step="prepare")
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig

    fp4 = torch.float4_e2m1fn_x2
    return QATConfig(
        MXDynamicActivationMXWeightConfig(activation_dtype=fp4, weight_dtype=fp4), step="prepare"
    )


def main() -> None:
    case, repeats, samples, threads = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    model = workload.model()
    quantize_(model, config_of(case), lambda layer, name: isinstance(layer, nn.Linear) and name != "lm_head")
    speeds = training_step.speeds(model, repeats, samples)
    print(json.dumps({"tool": f"torchao {torchao.__version__}", "case": case, **speeds}))


if __name__ == "__main__":
    main()
