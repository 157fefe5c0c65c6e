"""torchao's side of fake_quantize.py, run by a Python that has it: prints {case: median milliseconds} last."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization.granularity import PerRow, PerTensor
from torchao.quantization.qat import FakeQuantizerBase, Float8FakeQuantizeConfig, IntxFakeQuantizeConfig


def calls(x: Tensor) -> dict[str, Callable[[], Any]]:
    """Return what stands for each case; it computes scales from the values, as torchao always does.

    It has no symmetric INT8 by token.
    """
    scale = per_tensor_amax_to_scale(x.abs().max())
    configs = {
        "FP8 tensor": Float8FakeQuantizeConfig(torch.float8_e4m3fn, PerTensor()),
        "FP8 channel": Float8FakeQuantizeConfig(torch.float8_e4m3fn, PerRow()),
        "FP8 token, dynamic": Float8FakeQuantizeConfig(torch.float8_e4m3fn, PerRow()),
        "INT8 channel": IntxFakeQuantizeConfig(torch.int8, "per_channel"),
        "INT4 g128": IntxFakeQuantizeConfig(torch.int4, group_size=128),
    }
    quantizers = {case: FakeQuantizerBase.from_config(config) for case, config in configs.items()}

    def micro(element: Any) -> Callable[[], Tensor]:
        return lambda: MXTensor.to_mx(x, element, 32).dequantize(x.dtype)

    return {
        **{case: lambda quantizer=quantizer: quantizer(x) for case, quantizer in quantizers.items()},
        "NVFP4, dynamic": lambda: NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(x.dtype),
        "MXFP4": micro(torch.float4_e2m1fn_x2),
        "MXFP8": micro(torch.float8_e4m3fn),
    }


def main() -> None:
    cases, size, repeats, threads = json.loads(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = {}
    with torch.no_grad():
        for case, call in calls(x).items():
            if case not in cases:
                continue
            times = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            found[case] = 1e3 * statistics.median(times[1:])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
